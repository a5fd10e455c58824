"""Agama's profile: JSON, by Agama's own schema where it is at hand, and by ours; its scripts by the shells.

Agama's ``profile.schema.json`` is taken from where PROVISIOND_AGAMA_SCHEMA says or from an installed agama-cli.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from provisiond.templating.validators.schema_agama import AGAMA
from provisiond.templating.validators.schemas import vendors
from provisiond.templating.validators.shell import Script, check_scripts, shell_of
from provisiond.templating.validators.trees import NO_JSONSCHEMA, Tree, by_schema, read_json
from provisiond.templating.validators.verdict import Problem, Target, Verdict

NAME = "Agama schema"
_PLACES = ("/usr/share/agama/schema/profile.schema.json",)


def check(texts: Sequence[str], target: Target) -> list[Verdict]:
    """Schema, then names that storage and network refer to, then the shell of its scripts."""
    theirs = vendors("PROVISIOND_AGAMA_SCHEMA", *_PLACES)
    trees = [read_json(text) for text in texts]
    verdicts = []
    for tree in trees:
        problems = list(tree.problems)
        if not problems:
            try:
                problems += by_schema(tree, AGAMA)
                problems += by_schema(tree, theirs) if theirs else []
                problems += [] if problems else _references(tree)
            except ImportError:
                verdicts.append(Verdict(NAME, tuple(problems), (NO_JSONSCHEMA,)))
                continue
        verdicts.append(Verdict(NAME, tuple(problems)))
    found = check_scripts(
        [list(_scripts(t)) if not v.problems else [] for t, v in zip(trees, verdicts, strict=True)]
    )
    return [v.with_more(*more) for v, more in zip(verdicts, found, strict=True)]


def _references(tree: Tree) -> Iterator[Problem]:
    """Aliases of devices, and connections that bonds, bridges and VLANs are made of, are there."""
    storage = tree.value.get("storage", {})
    aliases = set()
    for section in ("drives", "mdRaids"):
        for device in storage.get(section, ()):
            aliases |= {p["alias"] for p in [device, *device.get("partitions", ())] if "alias" in p}
    for number, raid in enumerate(storage.get("mdRaids", ())):
        for alias in raid.get("devices", ()):
            if alias not in aliases:
                yield Problem(
                    f"storage: mdRaids: there is no alias {alias!r}",
                    tree.line(["storage", "mdRaids", number, "devices"]),
                )
    for number, group in enumerate(storage.get("volumeGroups", ())):
        for volume in group.get("physicalVolumes", ()):
            if isinstance(volume, str) and volume not in aliases:
                yield Problem(
                    f"storage: {group['name']}: there is no alias {volume!r}",
                    tree.line(["storage", "volumeGroups", number, "physicalVolumes"]),
                )
    ids: set[str] = set()
    for number, connection in enumerate(tree.value.get("network", {}).get("connections", ())):
        if connection["id"] in ids:
            yield Problem(
                f"network: the id {connection['id']!r} is taken twice",
                tree.line(["network", "connections", number, "id"]),
            )
        ids.add(connection["id"])


def _scripts(tree: Tree) -> Iterator[Script]:
    for section, scripts in tree.value.get("scripts", {}).items():
        for number, script in enumerate(scripts):
            for key in ("content", "body"):
                if key in script:
                    where = ["scripts", section, number, key]
                    line = lambda where=where: (tree.line(where) or 1) - 1  # noqa: E731
                    yield Script(
                        script[key],
                        shell_of(script[key]),
                        line,
                        f"scripts.{section} {script['name']}",
                        one_line=True,
                    )
