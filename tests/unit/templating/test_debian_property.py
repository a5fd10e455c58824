"""Random hosts, descriptions and hostile parameters: whatever is rendered for Debian, Ubuntu and cloud-init reads back as it was meant.

Asked are debconf-set-selections, netplan's own generator, cloud-init's parser, busybox's shell and the YAML tree.
"""

from __future__ import annotations

import base64
import ipaddress
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from provisiond.errors import RenderError
from provisiond.inventory.resolve import ResolvedHost
from provisiond.templating.catalogue import read_directory, shipped_directory
from provisiond.templating.context import BuildUrls, build_context
from provisiond.templating.render import Renderer
from provisiond.templating.validators import validate_many
from tests.strategies import hosts, texts
from tests.unit.templating import partman
from tests.unit.templating.kickstarts import made_up_machine

RENDERER = Renderer(read_directory(shipped_directory()))
URLS = BuildUrls.of("http://10.0.0.1:8421", "t0k3n-t0k3n-t0k3n")
NETPLAN = Path("/usr/libexec/netplan/generate")

some = settings(
    phases=(Phase.generate,), deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
line = texts(one_line=True)
parameters = st.fixed_dictionaries(
    {},
    optional={
        "timezone": line, "language": line, "keyboard": line, "root_password_hash": line, "http_proxy": line, "luks_passphrase": line,
        "ssh_authorized_keys": st.lists(texts(), max_size=2, unique=True), "ntp_servers": st.lists(texts(), max_size=2),
        "ca_certificates": st.lists(texts(), max_size=2), "admin_user": st.sampled_from(["deploy", "it's", "a b"]),
        "packages": st.lists(st.sampled_from(["vim", "-nano", "%end", "a b"]), max_size=2), "kernel_arguments": st.lists(line, max_size=1),
        "first_boot_script": texts(),
    },
)  # fmt: skip


@pytest.fixture(scope="module")
def machine() -> Iterator[Path]:
    """A made-up machine with a dozen disks."""
    with tempfile.TemporaryDirectory() as root:
        yield made_up_machine(Path(root))


def rendered(host: ResolvedHost, kind: str) -> tuple[str, dict[str, Any]] | None:
    """The text and what it was made of; None where it was refused with an error that names the host."""
    assert host.operating_system
    context = build_context(host, URLS, authorized_keys=["ssh-ed25519 AAAA daemon"])
    template = RENDERER.find(kind, host.operating_system.family, host.operating_system.version)
    try:
        return RENDERER.render(template, context), context
    except RenderError as error:
        assert host.name in str(error)
        return None


def many(
    kind: str,
    host: st.SearchStrategy[ResolvedHost],
    examples: int,
    look: Callable[[str, dict[str, Any]], None],
) -> list[str]:
    """``look`` at each text that is rendered; then all of them at once through the validator. Returns them."""
    made: list[str] = []

    @settings(some, max_examples=examples)
    @given(host)
    def check(drawn: ResolvedHost) -> None:
        found = rendered(drawn, kind)
        if found is not None:
            look(*found)
            made.append(found[0])

    check()
    assert len(made) > examples // 8, "nearly everything was refused"
    for text, verdict in zip(made, validate_many(kind, made), strict=True):
        assert not verdict.problems, f"{verdict}\n{text}"
    return made


def keys_of(context: dict[str, Any]) -> list[str]:
    """The SSH keys that a host is to have."""
    return list(
        dict.fromkeys([*context["parameters"].get("ssh_authorized_keys", []), "ssh-ed25519 AAAA daemon"])
    )


def blocks_of(storage: dict[str, Any]) -> list[dict[str, Any]]:
    """Every partition, RAID and volume of a plan."""
    parts = [p for d in storage["disks"] for p in d["partitions"]]
    return [*parts, *storage["raids"], *(v for g in storage["volume_groups"] for v in g["volumes"])]


# --- Ubuntu ------------------------------------------------------------------------------------------------


def curtin_is(actions: list[dict[str, Any]], storage: dict[str, Any], passphrase: str) -> None:
    """The graph of actions, followed from each mount down to the disks, is the plan."""
    known: dict[str, dict[str, Any]] = {}
    for action in actions:
        for key in ("device", "volume", "volgroup"):
            assert action.get(key) is None or action[key] in known
        for key in ("devices", "spare_devices"):
            assert set(action.get(key, [])) <= set(known)
        assert action["id"] not in known
        known[action["id"]] = action
    by_kind = {kind: [a for a in actions if a["type"] == kind] for kind in {a["type"] for a in actions}}
    assert len(by_kind["disk"]) == len(storage["disks"])

    def bare(name: str) -> dict[str, Any]:
        """The block below its LUKS."""
        found = known[name]
        return known[found["volume"]] if found["type"] == "dm_crypt" else found

    for place, disk in enumerate(storage["disks"], start=1):
        mine = next(a for a in by_kind["disk"] if a["path"] == f"/dev/provisiond/{place}/disk")
        parts = [a for a in by_kind["partition"] if a["device"] == mine["id"]]
        assert [(a["number"], a["size"]) for a in parts] == [
            (p["number"], -1 if p["size_mib"] is None else f"{p['size_mib']}M") for p in disk["partitions"]
        ]
        boots = any(p["use"] == "bios_boot" for p in disk["partitions"])
        assert mine.get("grub_device", False) == boots
        assert [a.get("grub_device", False) for a in parts] == [p["use"] == "esp" for p in disk["partitions"]]
    for raid in storage["raids"]:
        made = known[f"raid-{raid['name']}"]
        assert made["raidlevel"] == f"raid{raid['level']}" and made["name"] == raid["name"]
        assert [bare(d)["id"].partition("-")[2] for d in made["devices"]] == raid["members"]
    for group in storage["volume_groups"]:
        made = known[f"group-{group['name']}"]
        assert [bare(d)["id"].partition("-")[2] for d in made["devices"]] == group["members"]
        volumes = [a for a in by_kind["lvm_partition"] if a["volgroup"] == made["id"]]
        assert {a["name"]: a["size"] for a in volumes} == {
            v["name"]: -1 if v["size_mib"] is None else f"{v['size_mib']}M" for v in group["volumes"]
        }
        assert all(a["size"] != -1 for a in volumes[:-1])
    encrypted = {a["dm_name"]: a["key"] for a in by_kind.get("dm_crypt", [])}
    assert encrypted == {b["name"]: passphrase for b in blocks_of(storage) if b["encrypt"]}
    mounted = []
    for mount in by_kind["mount"]:
        form = known[mount["device"]]
        block = bare(form["volume"])
        mounted.append((block["id"].partition("-")[2], form["fstype"], mount["path"], mount.get("options")))
        assert known[form["volume"]]["type"] == "dm_crypt" or block["id"].partition("-")[2] not in encrypted
    wanted = [
        (b["name"], {"vfat": "fat32"}.get(b["filesystem"], b["filesystem"]), b["mount"] or "", b["options"])
        for b in blocks_of(storage)
        if b["mount"] or b["use"] == "swap"
    ]
    assert sorted(mounted, key=str) == sorted(wanted, key=str)
    paths = [m[2] for m in mounted if m[2]]
    assert paths == sorted(paths), "a mount point comes after the one it lies in"


@pytest.mark.parametrize("version", ["22.04", "24.04", "26.04"])
def test_ubuntu(version: str, tmp_path: Path) -> None:
    """Disks, network, users and parameters of an autoinstall document are those that were given."""

    def look(text: str, context: dict[str, Any]) -> None:
        config = yaml.safe_load(text)["autoinstall"]
        given_ = context["parameters"]
        curtin_is(config["storage"]["config"], context["storage"], given_.get("luks_passphrase", ""))
        assert config["timezone"] == given_.get("timezone", "UTC")
        assert config["locale"] == given_.get("language", "en_US.UTF-8")
        assert config["keyboard"]["layout"] == given_.get("keyboard", "us")
        assert config.get("proxy") == given_.get("http_proxy")
        root = config["user-data"]["users"][0]
        assert root["ssh_authorized_keys"] == keys_of(context)
        assert root.get("hashed_passwd") == given_.get("root_password_hash")
        if given_.get("ntp_servers"):
            assert config["user-data"]["ntp"]["servers"] == given_["ntp_servers"]
        netplan_is(config["network"], context, tmp_path)

    many("autoinstall", hosts("ubuntu", version, parameters=parameters), 12, look)


# --- networks ----------------------------------------------------------------------------------------------


def netplan_is(tree: dict[str, Any], context: dict[str, Any], scratch: Path) -> None:
    """netplan's generator takes it, and the units of systemd-networkd that it makes have the plan's addresses, routes and links."""
    if not NETPLAN.is_file():
        pytest.skip(f"{NETPLAN} is not installed (netplan.io)")
    root = Path(tempfile.mkdtemp(dir=scratch))
    (root / "etc/netplan").mkdir(parents=True)
    file = root / "etc/netplan/60-provisiond.yaml"
    file.write_text(yaml.safe_dump({"network": tree}))
    file.chmod(0o600)
    done = subprocess.run(
        [NETPLAN, "--root-dir", root], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    units = root / "run/systemd/network"
    plan = context["network"]
    for link in plan["links"]:
        unit = units / f"10-netplan-{link['name']}.network"
        if link["kind"] == "ethernet" and not link["up"]:
            continue
        said = re.findall(r"^(\w+)=(.*)$", unit.read_text(), re.MULTILINE)
        assert {v for k, v in said if k == "Address"} == {
            f"{a['ip']}/{a['prefix']}" for a in link["addresses"]
        }
        gateways = {v for k, v in said if k == "Gateway"}
        wanted = {r["via"] for r in link["routes"]} | {
            link[f"gateway{v}"] for v in (4, 6) if link[f"gateway{v}"]
        }
        assert gateways == wanted
        to = {v for k, v in said if k == "Destination"}
        assert to >= {
            str(ipaddress.ip_network(f"{r['to']}/{r['prefix']}"))
            for r in link["routes"]
            if r["to"] != "default"
        }
        asks = next((v for k, v in said if k == "DHCP"), "no")
        assert asks == {(True, True): "yes", (True, False): "ipv4", (False, True): "ipv6"}.get(
            (link["dhcp4"], link["dhcp6"]), "no"
        )
        assert {v for k, v in said if k == "DNS"} == set(link["dns"])
        owner = next((v for k, v in said if k in ("Bond", "Bridge")), None)
        assert owner == link["inside"]
        assert {v for k, v in said if k == "VLAN"} == {
            v["name"] for v in plan["vlans"] if v["link"] == link["name"]
        }
        if link["kind"] != "ethernet":
            netdev = dict(
                re.findall(
                    r"^(\w+)=(.*)$", (units / f"10-netplan-{link['name']}.netdev").read_text(), re.MULTILINE
                )
            )
            assert netdev["Kind"] == link["kind"]
            assert link["kind"] != "vlan" or netdev["Id"] == str(link["id"])
            assert link["kind"] != "bond" or netdev["Mode"] == link["mode"]
        if link["mtu"]:
            assert ("MTUBytes", str(link["mtu"])) in said or any(
                f"MTUBytes={link['mtu']}" in u.read_text() for u in units.glob(f"10-netplan-{link['name']}.*")
            )


def test_network_config(tmp_path: Path) -> None:
    """cloud-init's parser and netplan's generator read the same addresses, bonds, VLANs, bridges and routes."""

    def look(text: str, context: dict[str, Any]) -> None:
        tree = yaml.safe_load(text)
        netplan_is(tree, context, tmp_path)
        cards = {
            c["mac"]: name
            for name, card in tree["ethernets"].items()
            for c in [card["match"] | {"mac": card["match"]["macaddress"]}]
        }
        assert cards == {c["mac"]: c["name"] for c in context["network"]["cards"] if c["mac"] in cards}

    many("network-config", hosts("debian", "12", image=True), 25, look)


# --- images ------------------------------------------------------------------------------------------------


def test_user_data() -> None:
    """The YAML tree holds exactly the values that were given; descriptions that an image cannot have are refused."""

    def look(text: str, context: dict[str, Any]) -> None:
        tree = yaml.safe_load(text)
        given_ = context["parameters"]
        assert tree["timezone"] == given_.get("timezone", "UTC") and tree.get("locale") == given_.get(
            "language"
        )
        assert tree["users"][0]["ssh_authorized_keys"] == keys_of(context)
        assert tree["users"][0].get("hashed_passwd") == given_.get("root_password_hash")
        assert tree.get("ca_certs", {}).get("trusted", []) == given_.get("ca_certificates", [])
        assert tree.get("apt", {}).get("proxy") == given_.get("http_proxy")
        assert tree.get("ntp", {}).get("servers", []) == given_.get("ntp_servers", [])
        files = {f["path"]: f for f in tree["write_files"]}
        script = files.get("/var/lib/provisiond/script")
        assert (base64.b64decode(script["content"]).decode() if script else None) == given_.get(
            "first_boot_script"
        )
        here = context["storage"]["described"] and not context["storage"]["layout"]
        more = context["storage"]["disks"][1:] if here else []
        assert len(tree.get("disk_setup", {})) == len(tree.get("fs_setup", [])) == len(more)

    many("user-data", hosts("debian", "12", parameters=parameters, image=True), 30, look)


# --- Debian ------------------------------------------------------------------------------------------------


def late_script(text: str) -> str:
    """The script that the late command decodes."""
    encoded = re.search(r"echo (\S+) \| chroot /target base64 -d", text)
    assert encoded
    return base64.b64decode(encoded[1]).decode()


@pytest.mark.parametrize("version", ["11", "12", "13"])
def test_debian(version: str, machine: Path, tmp_path: Path) -> None:
    """Recipe or script divide the disks as described, the system's network is the described one, and values read back."""

    def look(text: str, context: dict[str, Any]) -> None:
        said = partman.values(text)
        given_ = context["parameters"]
        assert said["time/zone"] == given_.get("timezone", "UTC")
        assert said["debian-installer/locale"] == given_.get("language", "en_US.UTF-8")
        assert said["keyboard-configuration/xkb-keymap"] == given_.get("keyboard", "us")
        assert said["passwd/root-password-crypted"] == (given_.get("root_password_hash") or "!")
        assert said["mirror/http/proxy"] == (given_.get("http_proxy") or "")
        assert ("apt-setup/non-free-firmware" in said) == (version != "11")
        assert said["mirror/suite"] == {"11": "bullseye", "12": "bookworm", "13": "trixie"}[version]
        late = late_script(text)
        assert subprocess.run(["bash", "-n"], input=late, text=True, check=False).returncode == 0
        netplan = late.partition("60-provisiond.yaml <<'PROVISIOND-END'\n")[2].partition("PROVISIOND-END\n")[
            0
        ]
        netplan_is(yaml.safe_load(netplan)["network"], context, tmp_path)
        assert ("systemd-resolved" in late.partition("netplan.io")[2].partition("\n")[0]) == (version != "11")
        scratch = Path(tempfile.mkdtemp(dir=tmp_path))
        done = partman.divide(partman.script_of(text), machine, scratch)
        if done.status:
            assert "another name has already" in done.said, done
        elif "partman-auto/expert_recipe" in said:
            recipe_is(partman.recipe_of(text), context["storage"])
            assert not done.of("parted") and [c[0] for c in done.of("debconf-set")] == [
                "partman-auto/disk",
                "grub-installer/bootdev",
            ]
        else:
            script_is(done, context["storage"], given_.get("luks_passphrase", ""))

    many("preseed", hosts("debian", version, parameters=parameters), 10, look)
    made = many("preseed", hosts("debian", version), 14, look)
    assert len({"partman-auto/expert_recipe" in partman.values(text) for text in made}) == 2, (
        "only one way was tried"
    )


def recipe_is(entries: list[dict[str, str]], storage: dict[str, Any]) -> None:
    """Each block is an entry of its size (in MB, rounded up), kind and place."""
    blocks = [b for b in blocks_of(storage) if b["use"] != "lvm"]
    assert len(entries) == len(blocks)
    for entry, block in zip(entries, blocks, strict=True):
        if block["size_mib"] is None:
            assert entry["max"] == "-1"
        elif block["use"] != "bios_boot":
            assert 0 <= int(entry["min"]) * 10**6 - block["size_mib"] * 2**20 < 10**6
            assert entry["min"] == entry["max"]
        method = {"esp": "efi", "bios_boot": "biosgrub", "swap": "swap"}.get(block["use"], "format")
        assert entry["method"] == method
        if method == "format":
            assert (entry["filesystem"], entry["mountpoint"]) == (block["filesystem"], block["mount"])
        assert entry.get("lv_name") == (block["name"] if block["kind"] == "volume" else None)


def script_is(done: partman.Divided, storage: dict[str, Any], passphrase: str) -> None:
    """Partitions, RAIDs, volumes, LUKS and fstab that the script made are the plan's."""
    made: dict[str, list[tuple[str, int, int | None]]] = {}
    for call in done.of("parted"):
        device = next(word for word in call if word.startswith("/dev/"))
        if "mkpart" in call:
            name, start, end = call[call.index("mkpart") + 1 :]
            made.setdefault(device, []).append(
                (
                    name,
                    int(start.removesuffix("MiB")),
                    None if end == "100%" else int(end.removesuffix("MiB")),
                )
            )
    assert len(made) == len(storage["disks"])
    for parts, disk in zip(made.values(), storage["disks"], strict=True):
        assert [p[0] for p in parts] == [p["name"] for p in disk["partitions"]]
        at = 1
        for (_, begins, ends), part in zip(parts, disk["partitions"], strict=True):
            assert begins == at and (None if ends is None else ends - begins) == part["size_mib"]
            at = ends or at
    raids = [c for c in done.of("mdadm") if "--create" in c]
    assert [
        (c[1], f"--level={r['level']}" in c, f"--raid-devices={len(r['members'])}" in c)
        for c, r in zip(raids, storage["raids"], strict=True)
    ] == [(f"/dev/md/{r['name']}", True, True) for r in storage["raids"]]
    volumes = {c[c.index("-n") + 1]: c[c.index("-n") + 3] for c in done.of("lvcreate")}
    assert volumes == {
        v["name"]: "100%FREE" if v["size_mib"] is None else f"{v['size_mib']}m"
        for g in storage["volume_groups"]
        for v in g["volumes"]
    }
    encrypted = [b["name"] for b in blocks_of(storage) if b["encrypt"]]
    assert sorted(c[0] for c in done.crypttab) == sorted(encrypted)
    assert not encrypted or done.passphrase == passphrase
    assert passphrase not in str(done.calls) or not encrypted or len(passphrase) < 4
    mounts = {fields[1]: (fields[2], fields[3]) for fields in done.fstab if fields[2] != "swap"}
    assert mounts == {
        b["mount"]: (b["filesystem"], b["options"] or ("umask=0077" if b["use"] == "esp" else "defaults"))
        for b in blocks_of(storage)
        if b["mount"]
    }
    assert sum(fields[2] == "swap" for fields in done.fstab) == len(storage["swap"])
    for name in encrypted:
        block = next(b for b in blocks_of(storage) if b["name"] == name)
        if block["filesystem"]:
            assert [f"UUID=uuid:/dev/mapper/{name}"] in [fields[:1] for fields in done.fstab]
