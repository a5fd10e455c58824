"""cloud-init's documents: user-data and vendor-data by its own schema, network-config by its own parser, and meta-data.

cloud-init is on no package index, so it is taken from where it is: installed on this machine, or unpacked from its Debian
package below PROVISIOND_CLOUD_INIT or in the cache that ``fetch`` fills.
"""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import platformdirs

from provisiond.templating.validators.schema_netplan import NETWORK_V2
from provisiond.templating.validators.shell import Script, check_scripts, shell_of
from provisiond.templating.validators.trees import NO_JSONSCHEMA, Schema, Tree, by_schema, read_yaml
from provisiond.templating.validators.verdict import TIMEOUT, Problem, Target, Verdict

SCHEMA = "cloud-init schema"
PARSER = "cloud-init network"
_MISSING = "the package cloud-init is neither installed nor unpacked where PROVISIOND_CLOUD_INIT says"
_PACKAGES = "usr/lib/python3/dist-packages"
_OTHER_FORMATS = ("#include", "#part-handler", "#cloud-config-archive", "#cloud-config-jsonp", "## template:",
                  "content-type:", "mime-version:", "from ")  # fmt: skip
"""First lines of user-data that is no cloud-config and no script (cloud-init's documentation, user-data formats)."""


def home() -> Path | None:
    """The directory that holds cloud-init's Python package ``cloudinit``, or None."""
    given = os.environ.get("PROVISIOND_CLOUD_INIT", "")
    for place in (
        (Path(given, _PACKAGES), Path(given)) if given else (_cache() / _PACKAGES, Path("/", _PACKAGES))
    ):
        if (place / "cloudinit" / "net" / "network_state.py").is_file():
            return place
    return None


def fetch() -> Path | None:
    """Fetch Debian's package by apt-get and unpack it into the cache without installing it, once for all; None where apt cannot."""
    cache = _cache()
    cache.parent.mkdir(parents=True, exist_ok=True)
    with Path(f"{cache}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if (cache / _PACKAGES / "cloudinit").is_dir():
            return cache / _PACKAGES
        with tempfile.TemporaryDirectory(dir=cache.parent) as scratch:
            try:
                subprocess.run(["apt-get", "download", "cloud-init"], cwd=scratch, check=True, capture_output=True, timeout=120)  # fmt: skip
                package = next(Path(scratch).glob("cloud-init_*.deb"))
                subprocess.run(["dpkg-deb", "-x", str(package), f"{scratch}/x"], check=True, capture_output=True, timeout=60)  # fmt: skip
            except (OSError, subprocess.SubprocessError, StopIteration):
                return None
            Path(scratch, "x").rename(cache)
        return cache / _PACKAGES


def check_user_data(texts: Sequence[str], target: Target) -> list[Verdict]:
    """A cloud-config by the schema and its commands by the shells; a script by the shells. By the first line, as cloud-init does."""
    verdicts: list[Verdict] = []
    scripts: list[list[Script]] = []
    for text in texts:
        first = text.split("\n", 1)[0]
        shell = shell_of(text)
        mine: list[Script] = []
        if first.rstrip() == "#cloud-config":
            verdict, mine = _cloud_config(text)
        elif first.startswith("#cloud-boothook") or (first.startswith("#!") and shell):
            verdict, mine = Verdict("shell"), [Script(text, shell)]
        elif first.startswith("#!") or first.lower().startswith(_OTHER_FORMATS):
            verdict = Verdict(SCHEMA, skipped=(f"there is no validator for {first[:40]!r}",))
        else:
            said = "the first line is not '#cloud-config', nor another that cloud-init knows"
            verdict = Verdict(SCHEMA, (Problem(said, 1),))
        verdicts.append(verdict)
        scripts.append(mine)
    return [v.with_more(*more) for v, more in zip(verdicts, check_scripts(scripts), strict=True)]


def _cloud_config(text: str) -> tuple[Verdict, list[Script]]:
    tree = read_yaml(text)[0]
    if tree.problems:
        return Verdict(SCHEMA, tree.problems), []
    if not isinstance(tree.value, dict):
        return Verdict(SCHEMA, (Problem("it is no mapping"),)), []
    return check_tree(tree), scripts_of(tree)


def check_tree(tree: Tree, at: Sequence[Any] = ()) -> Verdict:
    """What cloud-init's schema says of the cloud-config below ``at``."""
    place = home()
    if place is None:
        return Verdict(SCHEMA, skipped=(f"{SCHEMA}: {_MISSING}",))
    schema = place / "cloudinit/config/schemas/schema-cloud-config-v1.json"
    try:
        found = by_schema(tree, schema, at)
    except ImportError:
        return Verdict(SCHEMA, skipped=(NO_JSONSCHEMA,))
    config = tree.value
    for step in at:
        config = config[step]
    told = {p.line for p in found}
    for key in config:
        line = tree.key_line([*at, key])
        if key not in _known_keys(schema) and line not in told:
            found.append(Problem(f"cloud-init knows no key {key!r}", line))
    return Verdict(SCHEMA, tuple(found))


@lru_cache(maxsize=4)
def _known_keys(schema: Path) -> frozenset[str]:
    """The keys at the top of a cloud-config: older schemas name them, but let a misspelt one pass."""
    tree = json.loads(schema.read_text(encoding="utf-8"))
    parts = [tree, *tree.get("$defs", {}).values(), *tree.get("definitions", {}).values()]
    return frozenset(key for part in parts for key in part.get("properties", {})) | _OTHER_KEYS


_OTHER_KEYS = frozenset({
    "allow_public_ssh_keys", "apt_pipelining", "autoinstall", "cloud_config_modules", "cloud_final_modules", "cloud_init_modules", "datasource",
    "datasource_list", "disable_ec2_metadata", "final_message", "launch-index", "merge_how", "merge_type", "network", "output", "preserve_hostname",
    "reporting", "syslog_fix_perms", "system_info", "updates", "vendor_data", "vendor_data2", "version",
})  # fmt: skip
"""Keys of cloud-init's documentation that are read outside its modules."""


def scripts_of(tree: Tree, at: Sequence[Any] = ()) -> list[Script]:
    """The shell in a cloud-config below ``at``: runcmd and bootcmd (one script of all their texts), and files with a #! line."""
    config = tree.value
    for step in at:
        config = config[step]
    scripts = []
    for name in ("bootcmd", "runcmd"):
        for number, command in enumerate(_list(config.get(name))):
            if isinstance(command, str):
                scripts.append(Script(command, "sh", tree.text_line([*at, name, number]), f"{name}.{number}"))
            elif isinstance(command, list) and (inner := shell_in(command)):
                line = tree.text_line([*at, name, number, len(command) - 1])
                scripts.append(Script(command[-1], inner, line, f"{name}.{number}"))
    for number, file in enumerate(_list(config.get("write_files"))):
        content = file.get("content") if isinstance(file, dict) else None
        if isinstance(content, str) and content.startswith("#!") and not file.get("encoding"):
            where = [*at, "write_files", number, "content"]
            scripts.append(
                Script(
                    content, shell_of(content), tree.text_line(where), str(file.get("path", "write_files"))
                )
            )
    return scripts


def shell_in(command: Sequence[Any]) -> str:
    """The shell of a command such as [sh, -c, TEXT]; empty for others."""
    if len(command) == 3 and all(isinstance(c, str) for c in command):
        name = str(command[0]).rpartition("/")[2]
        if name in ("sh", "bash") and command[1].startswith("-") and command[1].endswith("c"):
            return name
    return ""


_PARSE_NETWORK = """
import json, sys
from cloudinit.net import network_state
network_state.safeyaml.dumps = lambda *_, **__: ""  # used for its log only, and most of its time
for tree in json.load(sys.stdin):
    try:
        state = network_state.parse_net_config_data(tree, skip_broken=False)
        said = "" if list(state.iter_interfaces()) else "it configures no interface"
    except Exception as error:
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    print(json.dumps(said))
"""


def check_network(texts: Sequence[str], target: Target) -> list[Verdict]:
    """Read by cloud-init's own parser, all texts in one process; version 2 by our schema too, and by cloud-init's where it has one."""
    trees = [read_yaml(text)[0] for text in texts]
    problems: list[list[Problem]] = [list(tree.problems) for tree in trees]
    skipped: list[str] = []
    place = home()
    theirs = place / "cloudinit/config/schemas/schema-network-config-v2.json" if place else None
    schemas: list[Path | Schema] = (
        [NETWORK_V2, theirs] if theirs is not None and theirs.is_file() else [NETWORK_V2]
    )
    try:
        for tree, found in zip(trees, problems, strict=True):
            if not isinstance(tree.value, dict):
                found += [] if found else [Problem("it is no mapping")]
                continue
            at = ["network"] if isinstance(tree.value.get("network"), dict) else []
            version = (tree.value["network"] if at else tree.value).get("version")
            if version == 2:
                found += [problem for schema in schemas for problem in by_schema(tree, schema, at)]
            elif version != 1:
                found.append(Problem("version: must be 1 or 2", tree.line([*at, "version"])))
    except ImportError:
        skipped.append(NO_JSONSCHEMA)
    well = [number for number, found in enumerate(problems) if not found]
    if place is None:
        skipped.append(f"{PARSER}: {_MISSING}")
    elif well:
        said = _parsed([trees[number].value for number in well], place)
        if isinstance(said, str):
            skipped.append(f"{PARSER}: {said}")
        else:
            for number, problem in zip(well, said, strict=True):
                problems[number] += [Problem(problem)] if problem else []
    return [Verdict(PARSER, tuple(found), tuple(skipped)) for found in problems]


def _parsed(trees: Sequence[dict[str, Any]], place: Path) -> list[str] | str:
    """What the parser says of each; one sentence when it cannot be run."""
    bare = [tree.get("network", tree) for tree in trees]
    try:
        done = subprocess.run(
            [sys.executable, "-c", _PARSE_NETWORK],
            input=json.dumps(bare, default=str), capture_output=True, text=True, timeout=TIMEOUT, check=False,
            env={"PYTHONPATH": str(place), "PATH": "/usr/bin:/bin"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"ended after {TIMEOUT} seconds"
    lines = done.stdout.splitlines()
    if done.returncode or len(lines) != len(trees):
        return (done.stderr.strip().splitlines() or ["its parser ended early"])[-1]
    return [str(json.loads(line)) for line in lines]


def check_meta_data(texts: Sequence[str], target: Target) -> list[Verdict]:
    """YAML with the two keys that NoCloud needs."""
    verdicts = []
    for text in texts:
        tree = read_yaml(text)[0]
        problems = list(tree.problems)
        if not problems:
            there = tree.value if isinstance(tree.value, dict) else {}
            for key in ("instance-id", "local-hostname"):
                if key not in there:
                    problems.append(Problem(f"{key} is missing"))
                elif not isinstance(there[key], str) or not there[key]:
                    problems.append(Problem(f"{key} must be a text", tree.line([key])))
        verdicts.append(Verdict("meta-data", tuple(problems)))
    return verdicts


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _cache() -> Path:
    return Path(platformdirs.user_cache_dir("provisiond"), "cloud-init")
