"""Hostile parameters in whole templates: either the rendering is refused, or the format's own reader gives the same values back.

A value must never become a second line, section, option or command.
"""

from __future__ import annotations

import base64
import re
import shlex
import subprocess
import warnings
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pykickstart.parser import KickstartParser
from pykickstart.version import RHEL9, makeVersion

from provisiond.errors import RenderError
from provisiond.templating.catalogue import read_directory, shipped_directory
from provisiond.templating.context import build_context
from provisiond.templating.render import Limits, Renderer
from tests.golden.hosts import ALMA, ALMA_MEDIUM, BOOT, DEBIAN_MEDIUM, IMAGE, URLS, make_host

PIECES = ["'", '"', "\\", "\n%end\n", "\n", "\r", "\0", "#", "%end", "%post", "{{ host }}", "{% raw %}", "$(id)", "`id`", "${net0/mac}", ";", "&&",
          " ", "\t", "é", "\u2028", "-", "--iscrypted", "=", "!", "*", ">", "<", "d-i x/y string z", "PROVISIOND-END", "a"]  # fmt: skip
hostile = st.lists(st.sampled_from(PIECES), min_size=1, max_size=6).map("".join)
parameters = st.fixed_dictionaries(
    {},
    optional={
        "timezone": hostile, "language": hostile, "keyboard": hostile.filter(str.strip), "root_password_hash": hostile, "admin_user": hostile,
        "ssh_authorized_keys": st.lists(hostile, max_size=3, unique=True), "packages": st.lists(hostile, max_size=2), "http_proxy": hostile,
        "ntp_servers": st.lists(hostile, max_size=2), "kernel_arguments": st.lists(hostile, max_size=2), "disk": hostile,
        "serial_console": hostile, "repositories": st.dictionaries(hostile, hostile, max_size=1), "first_boot_script": hostile,
    },
)  # fmt: skip
RENDERER = Renderer(read_directory(shipped_directory()), Limits(seconds=60.0))
quick = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def rendered(template: str, given_parameters: dict[str, Any], **host: Any) -> str | None:
    """The text, or None when it was refused with an error that names the host."""
    context = build_context(make_host(**host, **given_parameters), URLS, boot=BOOT)
    try:
        return RENDERER.render(template, context)
    except RenderError as error:
        assert "web01" in str(error)
        return None


def section_names(text: str) -> list[str]:
    """Lines that open or end a kickstart section."""
    return [line.split()[0] for line in text.splitlines() if line.startswith("%")]


@quick
@given(parameters)
def test_kickstart(given_parameters: dict[str, Any]) -> None:
    """pykickstart reads back every value, and the sections are those of a harmless host."""
    text = rendered("kickstart/redhat-9.ks.j2", given_parameters, system=ALMA, medium=ALMA_MEDIUM)
    if text is None:
        return
    harmless = rendered("kickstart/redhat-9.ks.j2", {}, system=ALMA, medium=ALMA_MEDIUM)
    assert harmless is not None and section_names(text) == section_names(harmless)
    handler = makeVersion(RHEL9)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        KickstartParser(handler, followIncludes=False).readKickstartFromString(text)
    wanted = given_parameters
    assert handler.timezone.timezone == wanted.get("timezone", "UTC")
    assert handler.lang.lang == wanted.get("language", "en_US.UTF-8")
    assert handler.keyboard.x_layouts == [part.strip() for part in wanted.get("keyboard", "us").split(",")]
    assert handler.rootpw.password == wanted.get("root_password_hash", "")
    keys = [k.key for k in handler.sshkey.sshUserList if k.username == "root"]
    assert keys == list(wanted.get("ssh_authorized_keys", []))
    assert handler.url.proxy == wanted.get("http_proxy", "")
    if not wanted.get("admin_user"):
        assert handler.user.userList == []


def late_script(preseed: str) -> str:
    """The script that a preseed's late command decodes and runs in the new system."""
    encoded = re.search(r"echo (\S+) \| chroot /target base64 -d", preseed)
    assert encoded
    return base64.b64decode(encoded[1]).decode()


@quick
@given(parameters)
def test_preseed(given_parameters: dict[str, Any]) -> None:
    """Every value is alone on its line, and the shell commands split into the intended words."""
    text = rendered("preseed/debian.cfg.j2", given_parameters, medium=DEBIAN_MEDIUM)
    if text is None:
        return
    joined = re.sub(r"\\\n", "", text)
    values: dict[str, str] = {}
    for line in joined.splitlines():
        if line.strip() and not line.startswith("#"):
            owner, question, kind, *value = line.split(" ", 3)
            assert owner in {"d-i", "tasksel", "popularity-contest"} and re.fullmatch(
                r"[a-z/_-]+", question
            ), line
            assert kind in {"string", "select", "multiselect", "boolean", "password", "note"} or (
                kind,
                value,
            ) == ("note", [])
            assert question not in values
            values[question] = value[0] if value else ""
    wanted = given_parameters
    assert values["time/zone"] == wanted.get("timezone", "UTC")
    assert values["debian-installer/locale"] == wanted.get("language", "en_US.UTF-8")
    assert values["passwd/root-password-crypted"] == wanted.get("root_password_hash", "!")
    words = shlex.split(late_script(text), comments=True)
    printed = [words[i + 2] for i, w in enumerate(words) if words[i : i + 2] == ["printf", "%s\\n"]]
    assert printed == wanted.get("ssh_authorized_keys", [])


@quick
@given(parameters)
def test_user_data(given_parameters: dict[str, Any]) -> None:
    """The YAML tree holds exactly the given values."""
    text = rendered("cloud-init/user-data.j2", given_parameters, image=IMAGE)
    if text is None:
        return
    tree = yaml.safe_load(text)
    wanted = given_parameters
    assert tree["timezone"] == wanted.get("timezone", "UTC")
    assert tree.get("locale") == wanted.get("language")
    assert tree["users"][0].get("hashed_passwd") == wanted.get("root_password_hash")
    assert tree["users"][0]["ssh_authorized_keys"] == wanted.get("ssh_authorized_keys", [])
    assert len(tree["users"]) == (2 if wanted.get("admin_user") in (None, "debian", "root") else 3)
    assert set(tree) <= {"hostname", "fqdn", "prefer_fqdn_over_hostname", "manage_etc_hosts", "disable_root", "ssh_pwauth", "users", "timezone",
                         "locale", "ntp", "apt", "ca_certs", "package_update", "packages", "write_files", "runcmd", "phone_home"}  # fmt: skip


@quick
@given(parameters)
@pytest.mark.parametrize(
    "loader", ["ipxe/installer.ipxe.j2", "grub/installer.cfg.j2", "pxelinux/installer.cfg.j2"]
)
def test_kernel_command_line(loader: str, given_parameters: dict[str, Any]) -> None:
    """Whatever the parameters, a boot script has the lines of a harmless host's, and its kernel line the given arguments."""
    text = rendered(loader, given_parameters, medium=DEBIAN_MEDIUM)
    if text is None:
        return
    harmless = rendered(loader, {}, medium=DEBIAN_MEDIUM)
    assert harmless is not None
    assert [line.split()[:1] for line in text.splitlines()] == [
        line.split()[:1] for line in harmless.splitlines()
    ]
    line = next(line for line in text.splitlines() if "auto=true" in line)
    words = shlex.split(line) if loader.startswith("grub") else line.removesuffix(" || goto wait").split()
    arguments = given_parameters.get("kernel_arguments", [])
    assert words[len(words) - len(arguments) :] == arguments


@settings(max_examples=25, deadline=None)
@given(st.lists(hostile, min_size=1, max_size=3, unique=True))
def test_late_command_writes_the_keys(keys: list[str]) -> None:
    """Run by a real shell, the part of the late command that writes keys writes exactly those."""
    text = rendered("preseed/debian.cfg.j2", {"ssh_authorized_keys": keys}, medium=DEBIAN_MEDIUM)
    if text is None:
        return
    script = "\n".join(
        line.removesuffix(" >> /root/.ssh/authorized_keys")
        for line in late_script(text).splitlines()
        if line.endswith(" >> /root/.ssh/authorized_keys")
    )
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:-1] == keys and done.stderr == ""
