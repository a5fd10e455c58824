"""The small parts of handover: the inventory's text, fences around sources, and cutting bytes between characters."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from provisiond.drivers.handover import HandoverTarget
from provisiond.drivers.handover.inventory import group_names, inventory
from provisiond.drivers.handover.runs import _whole_characters
from provisiond.drivers.handover.source import allowed, check_source
from provisiond.errors import DriverRejected

EXPECTED = """\
all:
  children:
    web:
      children:
        web_front:
          hosts:
            web01:
              colour: blue
              banner: !unsafe "{{ evil }}"
              provisiond:
                host: web01
                groups:
                - all
                - web
                - web-front
                parameters:
                  colour: blue
                  banner: !unsafe "{{ evil }}"
                  not a name: 1
              ansible_host: 10.0.0.21
              ansible_port: 22
              ansible_user: root
              ansible_connection: ssh
              ansible_ssh_private_key_file: /k
"""


def test_inventory_in_full() -> None:
    """Groups nest, texts with braces are marked as data, and neither names of connections nor the drivers' settings come in."""
    parameters = {
        "colour": "blue",
        "banner": "{{ evil }}",
        "not a name": 1,
        "script": {"text": "x"},
        "ansible": {"git": "x"},
    }
    target = HandoverTarget(
        key="k",
        host="web01",
        address="10.0.0.21",
        ssh_key="/k",
        groups=("all", "web", "web-front"),
        parameters=parameters,
    )
    assert inventory(target) == EXPECTED


@pytest.mark.parametrize(
    "name",
    ["ansible_host", "ansible_ssh_args", "ansible_ssh_common_args", "ansible_connection", "ansible_password"],
)
def test_parameters_do_not_say_how_to_connect(name: str) -> None:
    """A parameter named like a variable of the connection is not the inventory's."""
    target = HandoverTarget(
        key="k", host="h", address="10.0.0.1", parameters={name: "evil", "ansible_become": True}
    )
    tree = yaml.safe_load(inventory(target))
    variables: dict[str, Any] = tree["all"]["hosts"]["h"]
    assert variables.get(name) != "evil" and variables["ansible_become"] is True


def test_group_names() -> None:
    """Names Ansible cannot have are changed, its own two are left out."""
    assert group_names(("all", "web-1", "1st", "ungrouped", "a b")) == ["web_1", "_1st", "a_b"]


@pytest.mark.parametrize("text", ["", "abc", "äö", "€", "😀", "a😀b€c"])
def test_whole_characters(text: str) -> None:
    """Wherever the bytes are cut, what is handed over now and later makes the text."""
    data = text.encode()
    for cut in range(len(data) + 1):
        now = _whole_characters(data[:cut])
        assert len(data[:cut]) - len(now) < 4
        assert now.decode() + data[len(now) :].decode() == text


def test_bytes_that_are_no_text_are_not_held_back() -> None:
    """A byte that can begin no character does not stop the output."""
    assert _whole_characters(b"abc\xff") == b"abc\xff"
    assert _whole_characters(b"\x80\x80\x80\x80\x80") == b"\x80\x80\x80\x80\x80"


@pytest.mark.parametrize(
    ("source", "fine"),
    [
        ("/srv/plays", True),
        ("/srv/plays/a", True),
        ("/srv/plays-of-others", False),
        ("/srv", False),
        ("https://git/x", True),
        ("https://git/xy", False),
    ],
)
def test_fence(source: str, fine: bool) -> None:
    """A source is below one that is allowed by whole parts of its path."""
    sources = ("/srv/plays/", "https://git/x")
    if fine:
        allowed(source, sources, "h")
    else:
        with pytest.raises(DriverRejected):
            allowed(source, sources, "h")
    allowed(source, (), "h")


@pytest.mark.parametrize(
    ("url", "fine"),
    [
        ("https://example.org/x.git", True), ("ssh://git@example.org/x", True), ("git@example.org:x/y", True), ("file:///etc", False),
        ("ext::sh -c id", False), ("http://example.org/x", False), ("/etc", False), ("-oProxyCommand=id", False),
        ("git@example.org:-x", False), ("https://a b", False), (5, False),
    ],
)  # fmt: skip
def test_git_urls(url: Any, fine: bool) -> None:
    """Only URLs of an allowed protocol, and nothing git would take for an option or a helper."""
    settings = {"git": url, "playbook": "site.yml"}
    if fine:
        check_source(settings, "h", (), ("https", "ssh"))
    else:
        with pytest.raises(DriverRejected):
            check_source(settings, "h", (), ("https", "ssh"))
