"""Random hosts, descriptions and hostile parameters: whatever kickstart is rendered, Anaconda reads the intended values out of it.

%pre is run by bash on a made-up machine, what it writes is included, and pykickstart's handler of the very version is asked.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from provisiond.errors import RenderError
from provisiond.inventory.resolve import ResolvedHost
from provisiond.templating.catalogue import read_directory, shipped_directory
from provisiond.templating.context import BuildUrls, build_context
from provisiond.templating.render import Renderer
from provisiond.templating.validators import validate
from tests.libnm import read_keyfiles
from tests.strategies import hosts, texts
from tests.unit.templating.kickstarts import LINKS, handler_of, keyfiles_of, made_up_machine, whole

RENDERER = Renderer(read_directory(shipped_directory()))
URLS = BuildUrls.of("http://10.0.0.1:8421", "t0k3n-t0k3n-t0k3n")
SYSTEMS = [("redhat", "8.10"), ("redhat", "9.4"), ("redhat", "10.0"), ("fedora", "43")]

some = settings(
    phases=(Phase.generate,), deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
parameters = st.fixed_dictionaries(
    {},
    optional={
        "timezone": texts(one_line=True), "language": texts(one_line=True), "root_password_hash": texts(one_line=True),
        "ssh_authorized_keys": st.lists(texts(one_line=True), max_size=2, unique=True), "http_proxy": texts(one_line=True),
        "ntp_servers": st.lists(texts(one_line=True), max_size=2), "luks_passphrase": texts(one_line=True),
        "ca_certificates": st.lists(texts(), max_size=2), "admin_user": st.sampled_from(["deploy", "it's", "%end", "a b"]),
        "packages": st.lists(st.sampled_from(["vim", "-nano", "@development", "%end", "a b"]), max_size=2),
    },
)  # fmt: skip


@pytest.fixture(scope="module")
def machine() -> Iterator[Path]:
    """A made-up machine with a dozen disks."""
    with tempfile.TemporaryDirectory() as root:
        yield made_up_machine(Path(root))


def rendered(host: ResolvedHost) -> tuple[str, dict[str, Any]]:
    """The kickstart and what it was made of."""
    assert host.operating_system
    context = build_context(host, URLS, authorized_keys=["ssh-ed25519 AAAA daemon"])
    template = RENDERER.find("kickstart", host.operating_system.family, host.operating_system.version)
    return RENDERER.render(template, context), context


def read(text: str, context: dict[str, Any], machine: Path) -> Any:
    """The handler, once the validator has passed the text."""
    family, version = context["os"]["family"], context["os"]["version"]
    verdict = validate("kickstart", text, family=family, version=version)
    assert not verdict.problems, verdict
    scratch = Path(tempfile.mkdtemp())
    try:
        return handler_of(whole(text, machine, scratch), family, version)
    finally:
        shutil.rmtree(scratch)


@pytest.mark.parametrize(("family", "version"), SYSTEMS)
def test_disks_and_links(family: str, version: str, machine: Path) -> None:
    """Partitions, RAIDs, volumes and network devices are those of the descriptions, whatever these are."""

    @settings(some, max_examples=14)
    @given(hosts(family, version))
    def check(host: ResolvedHost) -> None:
        text, context = rendered(host)
        handler = read(text, context, machine)
        check_disks(handler, context["storage"], context["parameters"].get("luks_passphrase", ""))
        check_links(handler, text, context)

    check()


@pytest.mark.parametrize(("family", "version"), SYSTEMS)
def test_hostile_parameters(family: str, version: str, machine: Path) -> None:
    """Either the rendering is refused by an error that names the host, or every value is read back as it was given."""

    @settings(some, max_examples=16)
    @given(hosts(family, version, parameters=parameters))
    def check(host: ResolvedHost) -> None:
        try:
            text, context = rendered(host)
        except RenderError as error:
            assert host.name in str(error)
            return
        handler = read(text, context, machine)
        wanted = context["parameters"]
        assert handler.timezone.timezone == wanted.get("timezone", "UTC")
        assert handler.lang.lang == wanted.get("language", "en_US.UTF-8")
        assert handler.rootpw.password == wanted.get("root_password_hash", "")
        assert handler.url.proxy == wanted.get("http_proxy", "")
        keys = [k.key for k in handler.sshkey.sshUserList if k.username == "root"]
        assert keys == [*wanted.get("ssh_authorized_keys", []), "ssh-ed25519 AAAA daemon"]
        if version.startswith("8"):
            servers = [s.hostname if hasattr(s, "hostname") else s for s in handler.timezone.ntpservers or []]
            assert sorted(servers) == sorted(set(wanted.get("ntp_servers", [])))
        else:
            assert [s.ntp_server for s in handler.timesource.timesource_list] == wanted.get("ntp_servers", [])
        assert [u.name for u in handler.user.userList] == (
            [wanted["admin_user"]] if "admin_user" in wanted else []
        )
        check_disks(handler, context["storage"], wanted.get("luks_passphrase", ""))

    check()


def token(disk: dict[str, Any]) -> str | None:
    """How a disk that is named stands in the kickstart; None where %pre finds it."""
    match = disk["match"]
    return (
        match["path"].removeprefix("/dev/")
        if match["path"]
        else f"disk/by-id/{match['id']}"
        if match["id"]
        else None
    )


def check_disks(handler: Any, plan: dict[str, Any], passphrase: str) -> None:
    """Every block of the plan stands in the handler with its place, size, file system, options and passphrase, and nothing else does."""
    only = list(handler.ignoredisk.onlyuse)
    assert only == list(handler.clearpart.drives) and len(set(only)) == len(plan["disks"])
    resolved = [LINKS.get(name.removeprefix("disk/by-id/"), name) for name in only]
    assert len(set(resolved)) == len(resolved), only
    static = all(token(d) for d in plan["disks"])
    for disk, name in zip(plan["disks"], only, strict=True):
        assert not static or name == token(disk)
    assert handler.bootloader.bootDrive == only[0]
    parts = [(p, name) for disk, name in zip(plan["disks"], only, strict=True) for p in disk["partitions"]]
    assert len(parts) == len(handler.partition.partitions)
    for (part, name), got in zip(parts, handler.partition.partitions, strict=True):
        assert got.disk == name
        check_block(part, got, passphrase)
    assert len(plan["raids"]) == len(handler.raid.raidList)
    for raid, got in zip(plan["raids"], handler.raid.raidList, strict=True):
        # up to RHEL 9 the command drops "md" from a name, up to Fedora 42 too (pykickstart, F43_Raid)
        assert got.device in (raid["name"], raid["name"].removeprefix("md"))
        assert (got.level, got.spares) == (f"RAID{raid['level']}", len(raid["spares"]))
        assert list(got.members) == [f"raid.{m}" for m in [*raid["members"], *raid["spares"]]]
        check_block(raid, got, passphrase)
    groups = [(g.vgname, list(g.partitions)) for g in handler.volgroup.vgList]
    assert groups == [(g["name"], [f"pv.{m}" for m in g["members"]]) for g in plan["volume_groups"]]
    volumes = [(g["name"], v) for g in plan["volume_groups"] for v in g["volumes"]]
    assert len(volumes) == len(handler.logvol.lvList)
    for (group, volume), got in zip(volumes, handler.logvol.lvList, strict=True):
        assert (got.vgname, got.name) == (group, volume["name"])
        check_block(volume, got, passphrase)
    made = [b for b in plan["blocks"] if b["filesystem"] == "btrfs"]
    if made:
        found = [(b.mountpoint, b.name, list(b.devices), b.label, b.subvol) for b in handler.btrfs.btrfsList]
        for block in made:
            assert ("none", "", [f"btrfs.{block['name']}"], block["name"], False) in found
            assert (block["mount"], block["name"], [f"LABEL={block['name']}"], "", True) in found


def check_block(block: dict[str, Any], got: Any, passphrase: str) -> None:
    """One partition, RAID or volume."""
    name = block["name"]
    places = {"raid": f"raid.{name}", "lvm": f"pv.{name}", "bios_boot": "biosboot", "swap": "swap"}
    place = places.get(
        block["use"], f"btrfs.{name}" if block["filesystem"] == "btrfs" else block["mount"] or "None"
    )
    assert got.mountpoint == place
    if "size_mib" in block:
        assert got.grow == (block["size_mib"] is None)
        assert got.grow or got.size == block["size_mib"]
    if block["use"] in ("filesystem", "esp") and block["filesystem"] != "btrfs":
        assert got.fstype == ("efi" if block["use"] == "esp" else block["filesystem"])
    assert (got.fsopts or None) == block["options"]
    assert bool(got.encrypted) == block["encrypt"]
    assert (got.passphrase or "") == (passphrase if block["encrypt"] else "")


def check_links(handler: Any, text: str, context: dict[str, Any]) -> None:
    """Every link is there with its addresses, in a network line or in a keyfile that libnm takes without a word."""
    plan, lines = context["network"], handler.network.network
    assert [n.hostname for n in lines if n.hostname] == [context["host"]["fqdn"]]
    files = keyfiles_of(text)
    if not files:
        assert [n.device for n in lines] == [c["mac"] for c in plan["links"]]
        for link, line in zip(plan["links"], lines, strict=True):
            check_line(link, line)
        return
    boot = next(c for c in plan["cards"] if c["boot"])
    assert [n.device for n in lines] == [boot["mac"]]
    found = read_keyfiles(files)
    assert set(found) == {link["name"] for link in plan["links"]}
    for link in plan["links"]:
        check_keyfile(link, found[link["name"]], plan)


def check_line(link: dict[str, Any], line: Any) -> None:
    """A network line says what the card's plan says."""
    v4 = [a for a in link["addresses"] if a["version"] == 4]
    v6 = [a for a in link["addresses"] if a["version"] == 6]
    assert line.onboot == link["up"]
    if not link["up"]:
        return
    assert [(line.ip, line.netmask)] == [(a["ip"], a["netmask"]) for a in v4] if v4 else not line.ip
    assert line.bootProto == ("static" if v4 else "dhcp" if link["dhcp4"] else "")
    assert bool(line.noipv4) == (not v4 and not link["dhcp4"])
    assert (line.ipv6 or "") == (
        f"{v6[0]['ip']}/{v6[0]['prefix']}" if v6 else "dhcp" if link["dhcp6"] else ""
    )
    assert (line.gateway or None) == link["gateway4"] and (line.ipv6gateway or None) == link["gateway6"]
    assert (line.nameserver or "") == ",".join(link["dns"])
    assert (line.mtu or None) == (str(link["mtu"]) if link["mtu"] else None)


def check_keyfile(link: dict[str, Any], got: dict[str, Any], plan: dict[str, Any]) -> None:
    """A keyfile says what the link's plan says."""
    assert (got["error"], got["warnings"]) == ("", []), (link, got)
    kinds = {"ethernet": "802-3-ethernet"}
    assert got["type"] == kinds.get(link["kind"], link["kind"])
    owner = next((o for o in plan["links"] if o["name"] == link["inside"]), None)
    assert got["controller"] == (owner["name"] if owner else None)
    assert got["port_type"] == (owner["kind"] if owner else None)
    assert got["mtu"] == (link["mtu"] or 0)
    assert got["autoconnect"] == bool(link["up"] or owner)
    if link["kind"] == "ethernet":
        assert got["mac"].lower() == link["mac"] and got["interface"] is None
    else:
        assert got["interface"] == link["name"]
    if link["kind"] == "vlan":
        parent = next(o for o in plan["links"] if o["name"] == link["link"])
        assert got["vlan"]["id"] == link["id"]
        assert got["vlan"]["parent"] == (None if parent["kind"] == "ethernet" else parent["name"])
        assert parent["kind"] != "ethernet" or got["mac"].lower() == parent["mac"]
    if link["kind"] == "bond":
        assert got["bond"]["mode"] == link["mode"] and got["bond"]["miimon"] == str(link["miimon"])
        assert got["bond"]["lacp_rate"] in (
            link["lacp_rate"],
            "slow" if not link["lacp_rate"] else None,
            None,
        )
    if owner:
        assert got["ipv4"] is None and got["ipv6"] is None
        return
    for version in (4, 6):
        said = got[f"ipv{version}"]
        assert said["addresses"] == [
            f"{a['ip']}/{a['prefix']}" for a in link["addresses"] if a["version"] == version
        ]
        assert said["gateway"] == link[f"gateway{version}"]
        assert said["dns"] == [d for d in link["dns"] if (":" in d) == (version == 6)]
        assert len(said["routes"]) == sum(r["version"] == version for r in link["routes"])
        if link[f"dhcp{version}"]:
            assert said["method"] in ("auto", "dhcp")
        elif version == 4:
            assert said["method"] == ("manual" if said["addresses"] else "disabled")
