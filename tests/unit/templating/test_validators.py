"""The validators find what is wrong, with its line, pass what is well, and say so by name when they cannot look."""

from __future__ import annotations

import importlib
import json
import random
import warnings
from pathlib import Path
from typing import Any

import pytest

from provisiond.templating.validators import KINDS, validate, validate_many

AUTOINSTALL = (
    "#cloud-config\nautoinstall:\n  version: 1\n  identity: {username: u, hostname: h, password: x}\n"
)
PROFILE = (
    '<profile xmlns="http://www.suse.com/1.0/yast2ns" xmlns:config="http://www.suse.com/1.0/configns">\n'
)
ESXI = "vmaccepteula\nrootpw --iscrypted $6$x\ninstall --firstdisk=local --overwritevmfs\nnetwork --bootproto=dhcp --device=vmnic0\n"
TALOS = "version: v1alpha1\nmachine:\n  type: worker\n  install: {disk: /dev/sda}\ncluster:\n  controlPlane: {endpoint: 'https://x:6443'}\n"

WELL = [
    ("kickstart", "lang en_US.UTF-8\nrootpw --lock\n%packages\nvim\n%end\n%post\necho hi\n%end\n"),
    ("preseed", "# a comment\nd-i a/b string c\nd-i preseed/late_command string \\\n  true; \\\n  false\n"),
    ("autoinstall", AUTOINSTALL + "  late-commands:\n    - curtin in-target -- true\n    - [sh, -c, 'echo hi']\n"),
    ("autoyast", f'<?xml version="1.0"?>\n<!DOCTYPE profile>\n{PROFILE}'
                 '<general><mode><confirm config:type="boolean">false</confirm></mode></general>\n'
                 '<users config:type="list"><user><username>a</username></user><user><username>b</username></user></users></profile>\n'),
    ("agama", '{"product": {"id": "SLES"}, '
              '"storage": {"drives": [{"search": "/dev/vda", "partitions": [{"size": "10 GiB", "filesystem": {"path": "/"}}]}]}}'),
    ("ignition", '{"ignition": {"version": "3.3.0"}, '
                 '"storage": {"files": [{"path": "/x", "contents": {"source": "data:,%23!%2Fbin%2Fsh%0Aecho%0A"}}]}}'),
    ("user-data", "#cloud-config\npackage_update: true\nruncmd: [echo hi]\n"),
    ("user-data", "#!/bin/sh\necho hi\n"),
    ("vendor-data", "#cloud-config\n{}\n"),
    ("meta-data", "instance-id: a\nlocal-hostname: b\n"),
    ("network-config", "version: 2\nethernets:\n  a: {dhcp4: true, match: {macaddress: '52:54:00:00:00:01'}, set-name: a}\n"),
    ("network-config", "network:\n  version: 2\n  ethernets: {a: {dhcp4: false}}\n"
                       "  bonds: {b: {interfaces: [a], addresses: [10.0.0.2/24], parameters: {mode: 802.3ad}}}\n"
                       "  vlans: {c: {id: 12, link: b, dhcp4: true}}\n"),
    ("talos", TALOS),
    ("esxi-kickstart", ESXI + "%firstboot --interpreter=busybox\necho hi\n%post --interpreter=python\nimport os\n"),
    ("ipxe-installer", "#!ipxe\n:again\nkernel --name k http://x/k initrd=i console=ttyS0 || goto again\ninitrd -n i http://x/i\nboot\n"),
    ("grub-installer", "set timeout=1\nmenuentry a {\n  linux /k x=y\n}\n"),
    ("pxelinux-installer", "DEFAULT a\nPROMPT 0\nLABEL a\n  KERNEL k\n  APPEND initrd=i x=y\n"),
    ("kexec", "#!/bin/bash\nset -eu\nkexec -l /k --initrd=/i\n"),
    ("finish", "#!/bin/sh\necho hi\n"),
    ("first-boot", "#cloud-config\nruncmd: [echo hi]\n"),
]  # fmt: skip
BROKEN = [
    ("kickstart", "nonsense --here\n", 1, "Unknown command: nonsense"),
    ("kickstart", "lang en_US\n\ntimezone --bla x\n", 3, "--bla"),
    ("kickstart", "%packages\nvim\n", 2, "does not end with %end"),
    ("kickstart", "lang x\n%post --interpreter=/bin/bash\nif true\n%end\n", 4, "%post: syntax error"),
    ("kickstart", "%pre\n\nfor f in $(ls); do rm $f; done\n%end\n", 3, "%pre: SC2045"),
    ("preseed", "# a\nd-i partman/x\n", 2, "parse error: 'd-i partman/x'"),
    ("preseed", "# a\n\nd-i a/b strng c\n", 3, "Unknown type strng"),
    ("preseed", "# a\nd-i preseed/late_command string \\\n  true; \\\n  if true; then\n", 4, "late_command: Syntax error"),
    ("autoinstall", "autoinstall:\n  version: 1\n", 1, "#cloud-config"),
    ("autoinstall", "#cloud-config\nhostname: x\n", None, "no mapping 'autoinstall'"),
    ("autoinstall", AUTOINSTALL + "  pakages: [vim]\n", 5, "'pakages' was unexpected"),
    ("autoinstall", AUTOINSTALL + "  storage:\n    layout:\n      name: lvmm\n", 7, "'lvmm' is not one of"),
    ("autoinstall", AUTOINSTALL + "  late-commands:\n    - |\n      echo\n      if\n", 9, "late-commands.0: Syntax"),
    ("autoinstall", AUTOINSTALL + "  storage:\n    config:\n      - {type: disk, id: d}\n      - {type: partition, id: p, device: dd}\n", 8,
     "'dd' is no action above it"),
    ("autoinstall", "#cloud-config\nautoinstall:\n  version: 1\n", 3, "nobody could log in"),
    ("autoyast", f"{PROFILE}<a></b></profile>", 2, "mismatch"),
    ("autoyast", f"{PROFILE}\n<sofware/></profile>", 3, "no section <sofware>"),
    ("autoyast", f'{PROFILE}<general><mode><confirm config:type="boolean">no</confirm></mode></general></profile>', 2, "true or false, not 'no'"),
    ("autoyast", f"{PROFILE}<scripts><init-scripts config:type='list'><script><source><![CDATA[\n#!/bin/sh\nif\n]]></source></script></init-scripts>"
                 "</scripts></profile>", 5, "init-scripts: Syntax error"),
    ("autoyast", '<!DOCTYPE a [<!ENTITY b "c">]>\n<profile/>', 1, "declares an entity"),
    ("autoyast", f"{PROFILE}<partitioning><drive><use>everything</use></drive></partitioning></profile>", 2, "<use> is all"),
    ("agama", '{"product": {"id": 1}}', 1, "product.id: 1 is not of type"),
    ("agama", '{\n"prodct": {}}', 2, "'prodct' was unexpected"),
    ("agama", '{"storage": {\n"volumeGroups": [{"name": "a",\n"physicalVolumes": ["b"]}]}}', 3, "no alias 'b'"),
    ("agama", '{"scripts": {"post": [\n{"name": "a", "content": "#!/bin/sh\\nif\\n"}]}}', 2, "line 3 of the script"),
    ("agama", '{\n"a": }', 2, "not JSON"),
    ("ignition", '{"ignition": {"version": "3.3.0"},\n"storage": {"files": [{"path": "x"}]}}', 2, "path not absolute"),
    ("ignition", '{"ignition": {"version": "3.3.0"},\n"strage": {}}', 2, "Unused key strage"),
    ("ignition", '{"ignition": {"version": "3.3.0"},\n'
                 '"storage": {"files": [\n{"path": "/x", "contents": {"source": "data:;base64,IyEvYmluL3NoCmlmCg=="}}]}}',
     3, "/x: line 3 of the script"),
    ("user-data", "hostname: x\n", 1, "#cloud-config"),
    ("user-data", "#cloud-config\na: [\n", 3, "not YAML"),
    ("user-data", "#cloud-config\nhostname: a\nhostname: b\n", 3, "stands twice"),
    ("user-data", "#cloud-config\npackage_update: true\n\npakages: [vim]\n", 4, "no key 'pakages'"),
    ("user-data", "#cloud-config\n\npackage_update: [1]\n", 3, "is not of type 'boolean'"),
    ("user-data", "#cloud-config\nruncmd:\n  - echo\n  - |\n    echo\n    if\n", 7, "runcmd.1: Syntax error"),
    ("user-data", "#cloud-config\nwrite_files:\n  - path: /x\n    content: |\n      #!/bin/sh\n      if\n", 7, "/x: Syntax error"),
    ("user-data", "#cloud-config\n" + "[" * 50_000, 2, "nested more than 100 deep"),
    ("preseed", "d-i a\u2028b\rc\n", 1, "Unknown type"),
    ("grub-local", "", 1, "contains no commands"),
    ("meta-data", "instance-id: x\n", None, "local-hostname is missing"),
    ("meta-data", "instance-id: x\nlocal-hostname: 12\n", 2, "must be a text"),
    ("network-config", "version: 7\n", 1, "must be 1 or 2"),
    ("network-config", "version: 2\nethernets:\n  a:\n    dhpc4: true\n", 4, "'dhpc4' was unexpected"),
    ("network-config", "version: 2\nethernets: {}\n", None, "configures no interface"),
    ("network-config", "version: 2\nethernets:\n  a:\n    addresses: [10.0.0.1]\n", 4, "does not match"),
    ("talos", TALOS.replace("worker", "workr"), 3, "'workr' is not one of"),
    ("talos", TALOS.replace("disk: /dev/sda", "image: x"), 4, "neither disk nor diskSelector"),
    ("talos", "apiVersion: v1alpha1\nkind: X\n", None, "one document with machine and cluster"),
    ("esxi-kickstart", ESXI + "autopart\n", 5, "no ESXi command 'autopart'"),
    ("esxi-kickstart", ESXI.replace("--overwritevmfs", "--overwritevms"), 3, "no option '--overwritevms'"),
    ("esxi-kickstart", ESXI.replace("=dhcp", "=static"), 4, "needs --ip"),
    ("esxi-kickstart", ESXI.replace("vmaccepteula\n", ""), None, "accepteula is needed"),
    ("esxi-kickstart", ESXI + "%firstboot\nif\n", 7, "%firstboot: Syntax error"),
    ("esxi-kickstart", ESXI + "%last\n", 5, "no section '%last'"),
    ("ipxe-local", "kernel x\n", 1, "#!ipxe"),
    ("ipxe-local", "#!ipxe\nkernal x\n", 2, "no iPXE command 'kernal'"),
    ("ipxe-local", "#!ipxe\nboot || goto nowhere\n", 2, "no label 'nowhere'"),
    ("ipxe-local", "#!ipxe\n\nchain --autofre x\n", 3, "no option '--autofre'"),
    ("ipxe-local", "#!ipxe\niseq a\n", 2, "takes 2 arguments, not 1"),
    ("ipxe-local", "#!ipxe\nset x ${net0/mac\n", 2, "is not closed"),
    ("ipxe-local", "#!ipxe\nkernel x a=#b #c\n", 2, "'#c' is a comment"),
    ("ipxe-local", "#!ipxe\n:a\n:a\n", 3, "stands in line 2 too"),
    ("ipxe-local", "#!ipxe\necho \x1b[2J\n", 2, "cannot read"),
    ("ipxe-local", "#!ipxe\nimgfetch --name\n", 2, "--name needs a value"),
    ("grub-local", "echo a\nif true; fi\n", 2, "syntax error"),
    ("grub-local", "menuentry a {\n", 1, ""),
    ("pxelinux-local", "default a\nlabel b\n  localboot 0\n", 1, "names no label"),
    ("pxelinux-local", "default a\nlabel a\n  locolboot 0\n", 3, "no directive 'locolboot'"),
    ("pxelinux-local", "default a\nlabel a\n", 2, "boots nothing"),
    ("pxelinux-local", "default a\nprompt x\nlabel a\n  localboot 0\n", 2, "takes a number"),
    ("kexec", "#!/bin/bash\n\nif\n", 4, "syntax error"),
    ("finish", "#!/bin/bash\nfor f in $(ls); do echo $f; done\n", 2, "SC2045"),
    ("rescue", "#cloud-config\na: [\n", 3, "not YAML"),
]  # fmt: skip


@pytest.mark.usefixtures("cloud_init_package")
@pytest.mark.parametrize(("kind", "text"), WELL, ids=[f"{k}{n}" for n, (k, _) in enumerate(WELL)])
def test_well(kind: str, text: str) -> None:
    """A good document passes, and somebody looked at it."""
    verdict = validate(kind, text)
    assert verdict.passed, verdict


@pytest.mark.usefixtures("cloud_init_package")
@pytest.mark.parametrize(
    ("kind", "text", "line", "said"), BROKEN, ids=[f"{b[0]}{n}" for n, b in enumerate(BROKEN)]
)
def test_broken(kind: str, text: str, line: int | None, said: str) -> None:
    """Each broken document is found, with the line that is wrong."""
    verdict = validate(kind, text)
    assert not verdict.skipped
    assert any(said in p.message and (line is None or p.line == line) for p in verdict.problems), verdict


def test_every_kind_is_tried() -> None:
    """There is a good and a broken document here for every kind there is a validator for, but for plain aliases."""
    for kinds in ({k for k, _ in WELL}, {b[0] for b in BROKEN}):
        tried = {KINDS.get(k) or KINDS[k.partition("-")[0]] for k in kinds}
        assert set(KINDS.values()) <= tried


@pytest.mark.parametrize(
    ("family", "version", "syntax"),
    [
        ("redhat", "8.10", "RHEL8"), ("redhat", "9.4", "RHEL9"), ("redhat", "10", "RHEL10"), ("redhat", "", "RHEL9"),
        ("fedora", "42", "F42"), ("fedora", "999", "F46"), ("redhat", "10.1", "RHEL10"),
    ],
)  # fmt: skip
def test_kickstart_by_version(family: str, version: str, syntax: str) -> None:
    """The version of the operating system says which syntax a kickstart is read in."""
    verdict = validate("kickstart", "lang en_US.UTF-8\n", family=family, version=version)
    if version == "999":  # the newest that the installed pykickstart knows
        assert verdict.validator >= f"pykickstart {syntax}"
    else:
        assert verdict.validator == f"pykickstart {syntax}"
    assert verdict.passed


def test_a_command_removed_later_is_found() -> None:
    """'auth' is no longer there in RHEL 10; what one version takes another does not."""
    text = "lang en_US.UTF-8\nauth --useshadow\n"
    assert validate("kickstart", text, family="redhat", version="8").passed
    assert validate("kickstart", text, family="redhat", version="10").problems


@pytest.mark.usefixtures("cloud_init_package")
@pytest.mark.parametrize("kind", sorted({b[0] for b in BROKEN}))
def test_many_at_once(kind: str) -> None:
    """Many documents through one process have the verdicts that each has alone, in their order."""
    texts = [b[1] for b in BROKEN if b[0] == kind] + [t for k, t in WELL if k == kind]
    texts = texts * 3 + texts[::-1]
    alone = {text: validate(kind, text) for text in dict.fromkeys(texts)}
    assert validate_many(kind, texts) == [alone[text] for text in texts]
    assert validate_many(kind, []) == []


@pytest.mark.parametrize(
    ("kind", "text", "missing"),
    [
        ("grub-local", "echo a\n", "grub-script-check"),
        ("preseed", "d-i a/b string c\n", "debconf-set-selections"),
        ("ignition", '{"ignition": {"version": "3.3.0"}}', "ignition-validate"),
        ("autoyast", "<profile/>", "xmllint"),
        ("kexec", "echo a\n", "bash -n"),
        ("kexec", "echo a\n", "shellcheck"),
        ("kickstart", "%post\necho a\n%end\n", "shellcheck"),
        ("user-data", "#cloud-config\n{}\n", "cloud-init"),
        ("network-config", "version: 2\nethernets: {a: {dhcp4: true}}\n", "cloud-init"),
    ],
)
def test_a_missing_program_is_named(
    kind: str, text: str, missing: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A validator whose program is not on PATH says so by name; that is not passed."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("PROVISIOND_CLOUD_INIT", str(tmp_path))
    verdict = validate(kind, text)
    assert not verdict.passed and not verdict.problems
    assert any(missing in s for s in verdict.skipped) and "skipped" in str(verdict)


@pytest.mark.parametrize(
    ("kind", "text", "package"),
    [
        ("kickstart", "lang x\n", "pykickstart"),
        ("agama", "{}", "jsonschema"),
        ("autoinstall", AUTOINSTALL, "jsonschema"),
        ("talos", TALOS, "jsonschema"),
        ("network-config", "version: 2\nethernets: {a: {}}\n", "jsonschema"),
    ],
)
def test_a_missing_package_is_named(
    kind: str, text: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for a Python package."""
    real = importlib.import_module

    def without(name: str, *more: Any) -> Any:
        if name.partition(".")[0] == package:
            raise ImportError(name)
        return real(name, *more)

    monkeypatch.setattr(importlib, "import_module", without)
    from provisiond.templating.validators import trees

    trees._validator.cache_clear()
    assert any(package in s for s in validate(kind, text).skipped)


def test_an_unknown_kind_is_skipped() -> None:
    """A kind nobody knows is not passed."""
    assert "there is no validator for windows" in validate("windows", "x").skipped
    assert validate("user-data", "#!/usr/bin/python3\n").skipped
    assert validate("finish", "#!/usr/bin/perl\n").skipped


def test_a_vendors_own_schema_is_asked_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A schema the operator has at hand is asked beside ours, with what lies beside it, and nothing is fetched."""
    theirs = tmp_path / "profile.schema.json"
    theirs.write_text(json.dumps({
        "$id": "https://example.org/a/profile.schema.json", "type": "object", "required": ["product"],
        "properties": {"storage": {"$ref": "storage.schema.json"}},
    }))  # fmt: skip
    (tmp_path / "storage.schema.json").write_text(json.dumps({"type": "object", "maxProperties": 0}))
    monkeypatch.setenv("PROVISIOND_AGAMA_SCHEMA", str(theirs))
    assert "'product' is a required property" in str(validate("agama", "{}"))
    assert validate("agama", '{"product": {"id": "a"}, "storage": {"drives": []}}').problems
    own = tmp_path / "autoinstall-schema.json"
    own.write_text(json.dumps({"type": "object", "required": ["timezone"]}))
    monkeypatch.setenv("PROVISIOND_AUTOINSTALL_SCHEMA", str(own))
    assert "'timezone' is a required property" in str(validate("autoinstall", AUTOINSTALL))


def test_commands_kept_between_kickstarts_are_as_new() -> None:
    """What one kickstart held is not seen by the next: each has the verdict that a handler of its own gives."""
    parser, versions = (
        importlib.import_module("pykickstart.parser"),
        importlib.import_module("pykickstart.version"),
    )
    errors = importlib.import_module("pykickstart.errors")
    texts = [b[1] for b in BROKEN if b[0] == "kickstart"] + [t for k, t in WELL if k == "kickstart"]
    texts += [
        "user --name a\nuser --name b\npart / --size 1\nnetwork --device a\n", "user --name a\npart / --size 1\npart /x --size 2\n",
        "volgroup v pv.1\nlogvol / --vgname v --name r --size 1\n", "autopart --type lvm\npart / --size 1\n", "autopart\n",
        "raid / --level 1 --device a raid.1 raid.2\nraid /b --level 1 --device a raid.1 raid.2\n",
    ]  # fmt: skip
    for text in texts + texts[::-1]:
        handler = versions.makeVersion(versions.RHEL9)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                parser.KickstartParser(handler, followIncludes=False).readKickstartFromString(text)
            well = True
        except errors.KickstartError:
            well = False
        by_us = validate("kickstart", text, version="9")
        assert (not [p for p in by_us.problems if not p.message.startswith("%")]) == well, (text, by_us)


def test_the_shape_of_a_script() -> None:
    """Words with digits may differ between scripts that are looked at once; nothing that could break out may."""
    from provisiond.templating.validators.shell import shape

    one = "curl http://10.0.0.1:8421/boot/aB-c_dEfghIjklMnop/x web01 52:54:00:aa:bb:cc 2001:db8::1 && a1=9; echo $a1"
    two = "curl http://10.9.1.21:80/boot/Zz9Yy-xXwWvVuU_tTsS/x db2 00:16:3e:ff:ee:dd fd00:1:2::face && b2=10; echo $b2"
    assert shape(one) == shape(two)
    assert shape("a1 b2 a1") != shape("a1 b2 b2")
    for other in ("echo 'a1'", 'echo "a1', "echo a1; b", "echo a1\n", "echo b", "echo $a1", "echo a-1"):
        assert shape("echo a1") != shape(other)


def test_a_checker_that_says_nothing_is_not_believed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program that ends badly without a word is a problem of every document it was given."""
    for name in ("xmllint", "shellcheck", "debconf-set-selections", "ignition-validate", "grub-script-check"):
        (tmp_path / name).write_text("#!/bin/sh\nexit 3\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    from provisiond.templating.validators import shell

    monkeypatch.setattr(shell, "_known", {})
    for kind, text in (
        ("autoyast", "<profile/>"), ("kexec", "echo a\n"), ("preseed", "d-i a/b string c\n"),
        ("ignition", '{"ignition": {"version": "3.3.0"}}'), ("grub-local", "echo a\n"),
    ):  # fmt: skip
        assert all(v.problems for v in validate_many(kind, [text, text])), kind


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_mutated_documents(kind: str) -> None:
    """Whatever is cut out of a document or put into it, there is a verdict on it, and the same one every time."""
    chance = random.Random(kind)
    whole = [t for k, t in [*WELL, *((b[0], b[1]) for b in BROKEN)] if kind in (k, k.partition("-")[0])] or [
        "#!/bin/sh\n"
    ]
    odd = [
        "'",
        '"',
        "\\",
        "\n",
        "\r",
        "\0",
        "#",
        "%end",
        "{{",
        "${",
        "\x85",
        "\u2028",
        "é",
        "[",
        "}",
        ": ",
        "&a ",
        "*a",
        "<a>",
        "]]>",
        "--- ",
        "1e999",
    ]
    texts = [
        "",
        "\n",
        "null",
        "[]",
        "1",
        "{" * 300,
        "<a>" * 500,
        "- " * 500,
        "\ufeff#cloud-config\n{}",
    ]
    for _ in range(12):
        text = chance.choice(whole)
        for _ in range(chance.randint(1, 4)):
            place = chance.randint(0, len(text))
            text = text[:place] + chance.choice([*odd, ""]) + text[place + chance.choice([0, 0, 1, 7]) :]
        texts.append(text)
    verdicts = validate_many(kind, texts)
    assert len(verdicts) == len(texts) and verdicts == validate_many(kind, texts)
    for verdict, text in zip(verdicts, texts, strict=True):
        assert all(p.line is None or 1 <= p.line <= text.count("\n") + 2 for p in verdict.problems), (
            text,
            verdict,
        )


def test_a_script_that_holds_up_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """When shellcheck hangs on one script of many, that one is the one that is told."""
    from provisiond.templating.validators import shell

    (tmp_path / "shellcheck").write_text(
        '#!/bin/sh\nfor f; do case $f in /*) if grep -q HANG "$f"; then exec sleep 60; fi; esac; done\necho \'{"comments": []}\'\n'
    )
    (tmp_path / "shellcheck").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(shell, "_known", {})
    monkeypatch.setattr(shell, "TIMEOUT", 1.0)
    monkeypatch.setattr(shell, "_ALONE", 8.0)
    well, hung, too = validate_many("kexec", ["echo a\n", "echo HANG\n", "echo b\n"])
    assert well.passed and too.passed and "ended after 8.0 seconds" in str(hung)
