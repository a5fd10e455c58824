"""How differences of many hosts become one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from provisiond.inventory.parameters import merge
from provisiond.inventory.resolve import ResolvedHost
from provisiond.rollouts.shadow_diff import blank, difference, digest, own_values, secrets_of, shape
from provisiond.templating.catalogue import shipped_directory
from provisiond.templating.fixtures import read_fixtures


@pytest.fixture(scope="module")
def host() -> ResolvedHost:
    """web01.example.org with two cards."""
    return read_fixtures([shipped_directory()])["redhat-uefi-static"].host()


def test_own_values_are_replaced_as_words_of_their_own(host: ResolvedHost) -> None:
    """Names, MACs in every spelling and addresses; what only contains them stays."""
    mac, ip = host.interfaces[0].mac, host.interfaces[0].ip
    assert ip is not None
    text = f"{host.fqdn} {host.name} x{host.name} {host.name}x {mac} {mac.replace(':', '-')} {mac.replace(':', '').upper()} {ip}/24 {ip}9 1{ip}"
    made = blank(text, own_values(host))
    assert made == f"FQDN HOST x{host.name} {host.name}x MAC MAC MAC IP/24 {ip}9 1{ip}"


def test_secrets_are_found_by_the_names_of_their_parameters(host: ResolvedHost) -> None:
    """Also within tables and lists; short ones are left, as they would be found everywhere."""
    parameters = {"vault": {"tokens": ["t0psecret"]}, "root_password": "abc", "site": "hq-berlin"}
    secret = replace(host, merged=merge([("host", parameters)]))
    assert blank("a t0psecret abc hq-berlin", secrets_of(secret)) == "a MASKED abc hq-berlin"


def test_shape_tells_what_a_validator_might_still_see(host: ResolvedHost) -> None:
    """web01 and db07 are of one shape; a name of digits, an IPv6 address and a MAC without letters are of others."""

    def of(name: str, mac: str = "52:54:00:aa:00:01", ip: str = "10.0.0.7") -> str:
        row = type(host.row)(**{**host.row.model_dump(), "name": name})
        return shape(
            own_values(replace(host, row=row, interfaces=(replace(host.interfaces[0], mac=mac, ip=ip),)))
        )

    assert of("web01") == of("db07", "52:54:00:aa:00:02", "192.0.2.99")
    assert (
        len(
            {
                of("web01"),
                of("123"),
                of("web-01"),
                of("web01", ip="2001:db8::1"),
                of("web01", "52:54:00:00:00:01"),
            }
        )
        == 5
    )


def test_equal_changes_at_other_places_are_one(host: ResolvedHost) -> None:
    """Line numbers and the lines around do not count; other changed lines, another template or kind do."""
    one = difference("a\nb\nc\nold\nd\n", "a\nb\nc\nnew\nd\n")
    other = difference("x\n" * 50 + "old\nz\n", "x\n" * 50 + "new\nz\n")
    assert one != other
    assert digest("changed", "t", one) == digest("changed", "t", other)
    assert digest("changed", "t", one) != digest("changed", "u", one)
    assert digest("changed", "t", one) != digest("changed", "t", difference("old\n", "newer\n"))
    assert one == "@@\n b\n c\n-old\n+new\n d"


def test_what_is_too_long_to_compare_is_told_so() -> None:
    """Thousands of lines that all differ would take the comparison minutes."""
    made = difference("\n".join(f"a{n}" for n in range(9000)), "\n".join(f"b{n}" for n in range(9000)))
    assert made.startswith("- 9000 lines\n+ 9000 lines")
    assert difference("a\n", "a") == "(only the ends of lines differ)"
