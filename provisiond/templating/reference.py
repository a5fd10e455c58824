"""The parameter reference, made from the headers of the shipped templates: ``python -m provisiond.templating.reference``."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator

from provisiond.templating.catalogue import Catalogue, read_directory, shipped_directory
from provisiond.templating.headers import Parameter

HEAD = """# Template parameters

Made from the headers of the shipped templates by `python -m provisiond.templating.reference`; do not edit. A parameter is set on a
host, a group, a subnet, a domain, an operating system or globally; what is nearest to the host wins.
"""


def reference(catalogue: Catalogue) -> str:
    """The reference as Markdown: one table of parameters, one of templates."""
    return "\n".join([HEAD, *_parameters(catalogue), "", "# Templates", "", *_templates(catalogue), ""])


def _parameters(catalogue: Catalogue) -> Iterator[str]:
    declared: dict[str, list[tuple[str, Parameter]]] = {}
    for path, header in catalogue.headers.items():
        for name, parameter in header.parameters.items():
            declared.setdefault(name, []).append((path, parameter))
    yield "| parameter | type | default | what it does | declared in |"
    yield "|---|---|---|---|---|"
    for name, places in sorted(declared.items()):
        for parameter in {p.model_dump_json(): p for _, p in places}.values():
            where = ", ".join(f"`{path}`" for path, p in places if p == parameter)
            default = "(required)" if parameter.required else f"`{json.dumps(parameter.default)}`"
            kind = parameter.type + (" or null" if parameter.nullable else "")
            kind += (": " + ", ".join(map(str, parameter.choices))) if parameter.choices else ""
            yield f"| `{name}` | {kind} | {default} | {_cell(parameter.about)} | {where} |"


def _templates(catalogue: Catalogue) -> Iterator[str]:
    yield "| template | kind | for | what it is |"
    yield "|---|---|---|---|"
    for path, header in catalogue.headers.items():
        systems = " ".join([*header.families, *header.versions]) or "any"
        yield f"| `{path}` | {header.kind} | {systems} | {_cell(header.about)} |"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(reference(read_directory(shipped_directory())))
