"""Random hosts and hostile parameters: whatever SUSE, CoreOS, Flatcar and Talos are given passes its validator and is read back as meant.

Profiles are read as trees (ElementTree, json, PyYAML), keyfiles by libnm, and scripts are run by a shell where that shows something.
"""

from __future__ import annotations

import base64
import configparser
import json
import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from provisiond.errors import RenderError
from provisiond.inventory.parameters import merge
from provisiond.inventory.resolve import ResolvedHost
from provisiond.inventory.tables import OperatingSystem
from provisiond.templating.catalogue import read_directory, shipped_directory
from provisiond.templating.context import BootFiles, BuildUrls, build_context
from provisiond.templating.fixtures import read_fixtures
from provisiond.templating.render import Renderer
from provisiond.templating.validators import validate
from tests.libnm import read_keyfiles
from tests.strategies import hosts, texts

RENDERER = Renderer(read_directory(shipped_directory()))
URLS = BuildUrls.of("http://10.0.0.1:8421", "t0k3n-t0k3n-t0k3n")
OWN = "ssh-ed25519 AAAA daemon"
BOOT = BootFiles(why="it's", kernel="http://10.0.0.1/k", initrd="http://10.0.0.1/i", url=URLS.base)
Y2 = "{http://www.suse.com/1.0/yast2ns}"
some = settings(
    phases=(Phase.generate,), deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
SECRETS = {
    "cluster": {"id": "aWQ=", "secret": "c2VjcmV0"},
    "secrets": {"bootstraptoken": "abcdef.0123456789abcdef", "secretboxencryptionsecret": "Ym94"},
    "trustdinfo": {"token": "fedcba.fedcba9876543210"},
    "certs": {n: {"crt": "Y3J0", "key": "a2V5"} for n in ("etcd", "k8s", "k8saggregator", "k8sserviceaccount", "os")},
}  # fmt: skip
TEXTS = (
    "timezone", "language", "keyboard", "root_password_hash", "http_proxy", "luks_passphrase", "registration_code", "serial_console",
    "talos_cluster", "image_url", "admin_user",
)  # fmt: skip
HOSTILE: dict[str, st.SearchStrategy[Any]] = {
    **dict.fromkeys(["timezone", "language", "keyboard", "root_password_hash", "http_proxy", "luks_passphrase", "registration_code"], texts()),
    **dict.fromkeys(["serial_console", "talos_cluster", "image_url"], texts()),
    **dict.fromkeys(["no_proxy", "ntp_servers", "ca_certificates", "patterns", "cert_sans"], st.lists(texts(), min_size=1, max_size=2)),
    "ssh_authorized_keys": st.lists(texts(), min_size=1, max_size=2, unique=True),
    "admin_user": st.sampled_from(["deploy", "it's", "%end", "a b"]),
    "repositories": st.dictionaries(st.just("extra"), texts(), min_size=1),
    "kernel_arguments": st.lists(texts(), min_size=1, max_size=1),
}  # fmt: skip
# two at a time: a format that refuses one value refuses the whole, so that more would leave nothing to read
hostile = st.lists(st.sampled_from(sorted(HOSTILE)), min_size=1, max_size=2, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: HOSTILE[name] for name in names})
)
NASTY = """it's "q" <a>&amp; ]]> {{ 7*7 }} ${x} $(y) `z` \\ #c %end: - [é]"""
WORD = "a;b$(c)&d|e<f>#g{{h}}%i*?"
Check = Callable[[str, dict[str, Any]], None]


def sound(kind: str, host: ResolvedHost) -> tuple[str, dict[str, Any]] | None:
    """The text and what it was made of, once its validator has passed it; None where the rendering was refused, with the host's name."""
    assert host.operating_system
    family, version = host.operating_system.family, host.operating_system.version
    context = build_context(host, URLS, authorized_keys=[OWN], boot=BOOT)
    if family == "talos":
        given_own = context["parameters"]
        context["parameters"] = {
            "talos_cluster": "lab",
            "talos_endpoint": "https://k:6443",
            "talos_secrets": SECRETS,
            **given_own,
        }
    try:
        text = RENDERER.render(RENDERER.find(kind, family, version), context)
    except RenderError as error:
        assert host.name in str(error) and (error.key or error.line), error
        return None
    verdict = validate(kind, text, family=family, version=version)
    assert not verdict.problems, f"{verdict}\n{text}"
    return text, context


def holds(kind: str, family: str, version: str, read: Check, *, examples: int = 30, least: int = 5) -> None:
    """``read`` looks at each rendering: with descriptions, then with hostile parameters. ``least`` of the first must come about."""
    made: list[str] = []
    read_hostile: list[str] = []

    @settings(some, max_examples=examples)
    @given(hosts(family, version))
    def described(host: ResolvedHost) -> None:
        if found := sound(kind, host):
            made.append(found[0])
            read(*found)

    @settings(some, max_examples=examples)
    @given(hosts(family, version, parameters=hostile, described=False))
    def with_parameters(host: ResolvedHost) -> None:
        if found := sound(kind, host):
            read_hostile.append(found[0])
            read(*found)

    described()
    with_parameters()
    plain = read_fixtures([shipped_directory()])["suse15-bios-dhcp"].host()
    for name, text in ((n, t) for n in HOSTILE for t in (NASTY, WORD)):
        value: Any = {"extra": text} if name == "repositories" else text if name in TEXTS else [text]
        host = replace(
            plain,
            operating_system=OperatingSystem(
                id="o", name=f"{family}-{version}", family=family, version=version
            ),
            merged=merge([("host web01", {"luks_passphrase": "x", name: value})]),
            storage={"encrypt": True} if name == "luks_passphrase" else None,
        )
        if found := sound(kind, host):
            read(*found)
    assert len(made) >= least, f"only {len(made)} of {examples} were rendered"
    assert len(read_hostile) >= examples // 3, f"only {len(read_hostile)} hostile ones were rendered"


def mounts_of(plan: dict[str, Any]) -> list[str]:
    """Mount points and swaps of a plan, sorted."""
    return sorted(b["mount"] or "swap" for b in plan["blocks"] if b["mount"] or b["use"] == "swap")


def keys_of(context: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys([*context["parameters"].get("ssh_authorized_keys", []), OWN]))


# --- AutoYaST ----------------------------------------------------------------------------------------------


def read_autoyast(text: str, context: dict[str, Any]) -> None:
    """Values stand as text in their elements; the plan's blocks and links are all there, and nothing else."""
    root = ElementTree.fromstring(text.encode())
    own, plan, net = context["parameters"], context["storage"], context["network"]

    def every(path: str) -> list[str]:
        names = path.removeprefix("./").split("/")
        return [e.text or "" for e in root.iterfind("/".join([".", *(Y2 + n for n in names)]))]

    assert every("./timezone/timezone") == [own.get("timezone", "UTC")]
    assert every("./keyboard/keymap") == [own.get("keyboard", "us")]
    assert every("./users/user/username") == ["root", *([own["admin_user"]] if "admin_user" in own else [])]
    assert every("./users/user/user_password")[0] == own.get("root_password_hash", "!")
    assert every("./users/user/authorized_keys/listentry") == keys_of(context) * len(every("./users/user"))
    assert every("./ntp-client/ntp_servers/ntp_server/address") == own.get("ntp_servers", [])
    assert every("./proxy/http_proxy") == ([own["http_proxy"]] if "http_proxy" in own else [])
    assert every("./suse_register/reg_code") == (
        [own["registration_code"]] if "registration_code" in own else []
    )
    assert every("./add-on/add_on_products/listentry/media_url") == list(own.get("repositories", {}).values())
    partitions = "./partitioning/drive/partitions/partition"
    assert sorted(every(f"{partitions}/mount")) == mounts_of(plan)
    assert len(every(partitions)) == len(plan["blocks"])
    assert every(f"{partitions}/crypt_key") == [own["luks_passphrase"]] * sum(
        b["encrypt"] for b in plan["blocks"]
    )
    assert sorted(every(f"{partitions}/raid_name")) == sorted(
        f"/dev/md/{r['name']}" for r in plan["raids"] for _ in r["members"]
    )
    assert sorted(every(f"{partitions}/lvm_group")) == sorted(
        g["name"] for g in plan["volume_groups"] for _ in g["members"]
    )
    sizes = [b["size_mib"] for b in plan["blocks"] if "size_mib" in b]
    assert every(f"{partitions}/size") == ["max" if s is None else f"{s}MiB" for s in sizes]
    interfaces = "./networking/interfaces/interface"
    assert len(every(interfaces)) == len(net["links"])
    statics = {
        a.text
        for e in root.iterfind(f"./{Y2}networking/{Y2}interfaces/{Y2}interface")
        for a in e.iter()
        if a.tag in (f"{Y2}ipaddr", f"{Y2}IPADDR")
    }
    assert statics == {a["ip"] for link in net["links"] for a in link["addresses"]}
    assert every(f"{interfaces}/vlan_id") == [str(v["id"]) for v in net["vlans"]]
    slaves = [e.text for e in root.iter() if re.fullmatch(rf"{Y2}bonding_slave\d", e.tag)]
    assert len(slaves) == sum(len(b["members"]) for b in net["bonds"])
    gateways = [g for link in net["links"] for g in (link["gateway4"], link["gateway6"]) if g]
    routes = gateways + [r["via"] for link in net["links"] for r in link["routes"]]
    assert sorted(every("./networking/routing/routes/route/gateway")) == sorted(routes)
    for script in root.iter(f"{Y2}source"):
        assert (script.text or "").startswith("#!/bin/bash\n")


def test_autoyast() -> None:
    """SLES and Leap 15."""
    holds("autoyast", "suse", "15.6", read_autoyast, examples=30, least=20)


# --- Agama -------------------------------------------------------------------------------------------------


def read_agama(text: str, context: dict[str, Any]) -> None:
    """The JSON holds the values, every block by its alias or name, and every link by its id."""
    tree = json.loads(text)
    own, plan, net = context["parameters"], context["storage"], context["network"]
    assert tree["root"]["sshPublicKeys"] == keys_of(context)
    assert tree["root"].get("password") == own.get("root_password_hash")
    assert tree["l10n"] == {
        "locale": own.get("language", "en_US.UTF-8"), "keymap": own.get("keyboard", "us"), "timezone": own.get("timezone", "UTC")
    }  # fmt: skip
    assert [s["address"] for s in tree.get("ntp", {}).get("sources", [])] == own.get("ntp_servers", [])
    assert tree["software"]["patterns"] == own.get("patterns", ["minimal_base"])
    assert tree["product"].get("registrationCode") == own.get("registration_code")
    storage = tree["storage"]
    parts = [p for d in storage["drives"] for p in d["partitions"] if "delete" not in p]
    blocks = parts + storage["mdRaids"] + [v for g in storage["volumeGroups"] for v in g["logicalVolumes"]]
    assert sorted(b.get("alias") or b["name"] for b in blocks) == sorted(b["name"] for b in plan["blocks"])
    paths = [b["filesystem"]["path"] for b in blocks if "path" in b.get("filesystem", {})]
    assert sorted(paths) == mounts_of(plan)
    passphrases = [b["encryption"]["luks2"]["password"] for b in blocks if "encryption" in b]
    assert passphrases == [own["luks_passphrase"]] * sum(b["encrypt"] for b in plan["blocks"])
    connections = tree["network"]["connections"]
    assert len(connections) == len(net["links"])
    for link, got in zip(net["links"], connections, strict=True):
        assert got.get("addresses", []) == [f"{a['ip']}/{a['prefix']}" for a in link["addresses"]]
        assert (got.get("gateway4"), got.get("gateway6")) == (link["gateway4"], link["gateway6"])
        assert got.get("vlan", {}).get("id") == link["id"]
        assert len(got.get("bond", got.get("bridge", {})).get("ports", [])) == len(link["members"])


def test_agama() -> None:
    """SLES and Leap 16. Many descriptions search by serial number, which Agama cannot."""
    holds("agama", "suse", "16.0", read_agama, examples=40, least=5)


# --- Ignition ----------------------------------------------------------------------------------------------


def data(url: str) -> str:
    head, _, body = url.partition(",")
    assert head == "data:;base64"
    return base64.b64decode(body).decode()


def files_of(tree: dict[str, Any]) -> dict[str, str]:
    return {f["path"]: data(f["contents"]["source"]) for f in tree["storage"]["files"]}


def read_ignition(text: str, context: dict[str, Any]) -> None:
    """The live system's configuration holds the installed one's; values, disks, secrets and links stand in that."""
    live = json.loads(text)
    inner = files_of(live)["/etc/provisiond/system.ign"]
    verdict = validate("ignition", inner, family=context["os"]["family"], version=context["os"]["version"])
    assert not verdict.problems, f"{verdict}\n{inner}"
    tree, own, plan = json.loads(inner), context["parameters"], context["storage"]
    users = {u["name"]: u for u in tree["passwd"]["users"]}
    assert users["core"]["sshAuthorizedKeys"] == users["root"]["sshAuthorizedKeys"] == keys_of(context)
    assert users["root"].get("passwordHash") == own.get("root_password_hash")
    assert tree["storage"]["links"][0]["target"] == f"../usr/share/zoneinfo/{own.get('timezone', 'UTC')}"
    encrypted = [b["name"] for b in plan["blocks"] if b["encrypt"]]
    assert [d["name"] for d in tree["storage"]["luks"]] == encrypted
    assert [data(d["keyFile"]["source"]) for d in tree["storage"]["luks"]] == [own["luks_passphrase"]] * len(
        encrypted
    )
    brought = {"/", "/boot", "/boot/efi"}
    mounts = sorted(b["mount"] for b in plan["blocks"] if b["mount"] and b["mount"] not in brought)
    assert sorted(f["path"] for f in tree["storage"]["filesystems"] if "path" in f) == mounts
    wheres = [u["contents"] for u in tree["systemd"]["units"] if u["name"].endswith(".mount")]
    assert sorted(re.search(r"(?m)^Where=(.*)$", w)[1] for w in wheres) == mounts  # type: ignore[index]
    files = files_of(tree)
    certificates = [files[p] for p in sorted(files) if re.search(r"/provisiond-\d+\.pem$", p)]
    assert certificates == own.get("ca_certificates", [])
    addresses = sorted(
        f"{a['ip']}/{a['prefix']}" for link in context["network"]["links"] for a in link["addresses"]
    )
    if context["os"]["family"] == "flatcar":
        read_networkd(files, addresses, len(context["network"]["links"]))
    else:
        keyfiles = {p: t for p, t in files.items() if p.endswith(".nmconnection")}
        found = read_keyfiles(keyfiles)
        assert len(found) == len(context["network"]["links"])
        assert not [f for f in found.values() if f.get("error") or f.get("warnings")], found
        assert sorted(a for f in found.values() for v in ("ipv4", "ipv6") for a in (f.get(v) or {}).get("addresses", [])) == addresses  # fmt: skip


def read_networkd(files: dict[str, str], addresses: list[str], links: int) -> None:
    """systemd's syntax: sections and keys, keys several times."""
    networks = {p: t for p, t in files.items() if p.endswith(".network")}
    assert len(networks) == links
    for text in [t for p, t in files.items() if p.startswith("/etc/systemd/network/")]:
        parser = configparser.ConfigParser(strict=False, interpolation=None, delimiters=("=",))
        parser.read_string(text)
    assert sorted(re.findall(r"(?m)^Address=(.*)$", "\n".join(networks.values()))) == addresses


@pytest.mark.parametrize(("family", "version"), [("coreos", "43"), ("flatcar", "4230")])
def test_ignition(family: str, version: str) -> None:
    """Fedora CoreOS and Flatcar. Their images have a layout of their own, so that many descriptions are refused."""
    holds("ignition", family, version, read_ignition, examples=24, least=5)


# --- Talos -------------------------------------------------------------------------------------------------


def read_talos(text: str, context: dict[str, Any]) -> None:
    """The YAML holds the values, and the links by MAC or name."""
    tree, own = yaml.safe_load(text), context["parameters"]
    assert tree["cluster"]["clusterName"] == own["talos_cluster"]
    assert tree["machine"]["certSANs"] == list(
        dict.fromkeys([context["host"]["fqdn"], *own.get("cert_sans", [])])
    )
    assert tree["machine"].get("time", {}).get("servers", []) == own.get("ntp_servers", [])
    if "http_proxy" in own:
        assert tree["machine"]["env"]["https_proxy"] == own["http_proxy"]
    found = [
        i
        for interface in tree["machine"]["network"]["interfaces"]
        for i in (interface, *interface.get("vlans", []))
    ]
    addresses = sorted(a for i in found for a in i.get("addresses", []))
    wanted = [a for link in context["network"]["links"] for a in link["addresses"]]
    assert addresses == sorted(f"{a['ip']}/{a['prefix']}" for a in wanted)


def test_talos() -> None:
    """One disk of its own layout: nearly all descriptions of storage are refused."""
    holds("talos", "talos", "1.10.5", read_talos, examples=40, least=3)


# --- scripts -----------------------------------------------------------------------------------------------


def read_kexec(text: str, context: dict[str, Any]) -> None:
    """Run with programs that only say what they are given, it hands kexec the arguments the installer is to have, as one word."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        for name, says in (
            ("id", "echo 0"), ("cat", f"echo {context['boot']['mac']}"), ("curl", "while [ $# -gt 1 ]; do shift; done"),
            ("kexec", f'for word in "$@"; do printf "%s\\n" "$word" >> {log}; done'), ("sync", ":"), ("systemctl", ":"),
        ):  # fmt: skip
            Path(folder, name).write_text(f"#!/bin/sh\n{says}\n")
            Path(folder, name).chmod(0o755)
        done = subprocess.run(
            ["sh"],
            input=text,
            text=True,
            capture_output=True,
            timeout=30,
            env={"PATH": f"{folder}:/usr/bin:/bin"},
        )
        assert done.returncode == 0, done.stderr
        words = log.read_text().splitlines()
    assert words[0] == "--load" and words[2].startswith("--initrd=")
    line, extra = words[3].removeprefix("--command-line="), context["parameters"].get("kernel_arguments", [])
    assert line.split()[len(line.split()) - len(extra) :] == extra
    assert URLS.base in line and len([w for w in words if w.startswith("--command-line=")]) == 1


@pytest.mark.parametrize(("family", "version"), [("suse", "16.0"), ("flatcar", "4230")])
def test_kexec(family: str, version: str) -> None:
    """What starts an installer from a running Linux."""
    holds("kexec-installer", family, version, read_kexec, examples=12)


@pytest.mark.parametrize("kind", ["rescue", "finish"])
def test_scripts(kind: str) -> None:
    """The rescue and finish scripts are sound shell whatever the host is."""

    def read(text: str, context: dict[str, Any]) -> None:
        """printf writes exactly the keys."""
        line = re.search(r"(?m)^ *(printf '%s\\n'.*) > \S*/\.ssh/authorized_keys\S*$", text)
        assert line
        done = subprocess.run(["sh", "-c", line[1]], capture_output=True, text=True, check=True)
        assert done.stdout.split("\n")[:-1] == keys_of(context)

    holds(kind, "suse", "15.6", read, examples=12)
