"""Where a line of a rendered text comes from: the template and its line, for whoever has to mend it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import Template
from jinja2.runtime import Context

from provisiond.templating.render import Renderer
from provisiond.templating.sandbox import Meter, Sandbox, meter


@dataclass(frozen=True)
class Place:
    """A line of a template, from 1."""

    template: str
    line: int

    def __str__(self) -> str:
        return f"{self.template}:{self.line}"


def places(renderer: Renderer, template_id: str, context: Mapping[str, Any]) -> list[Place]:
    """The place of each line that ``renderer.render`` makes of the same, which must have gone well.

    A line that stands in a template as it is comes from there. For others it is the line of the last value in it; for text out
    of a macro, the line that calls it.
    """
    traced: list[list[Place]] = [[]]
    tracer = _Tracer(dict(renderer.catalogue.files))
    values = {
        **context,
        "parameters": renderer.filled(template_id, context.get("parameters", {}), ""),
    }
    token = meter.set(Meter(renderer.limits.seconds * 10, renderer.limits.size))
    text: list[str] = []
    try:
        template = tracer.get_template(template_id)
        for piece in template.root_render_func(template.new_context(values)):
            text.append(piece)
            traced[-1].append(tracer.place)
            traced += [[tracer.place] for _ in range(piece.count("\n"))]
    finally:
        meter.reset(token)
    sources = _sources(renderer, template_id)
    return [
        _best(line, found, sources, template_id)
        for line, found in zip("".join(text).split("\n"), traced, strict=True)
    ]


class _Tracer(Sandbox):
    """Notes for every piece that is put out where the innermost template was that made it."""

    def __init__(self, files: dict[str, str]) -> None:
        super().__init__(files)
        self.place = Place("", 1)
        self._last: object = None

    def get_template(self, name: Any, parent: str | None = None, globals: Any = None) -> Any:
        template = super().get_template(name, parent, globals)
        if not getattr(template, "_traced", False):
            template._traced = True
            template.root_render_func = self._watched(template, template.root_render_func)
        return template

    def _watched(self, template: Template, render: Any) -> Any:
        def watched(context: Context) -> Iterator[str]:
            made = render(context)
            for piece in made:
                if piece is not self._last:  # else an included template made it, and has noted it
                    line = template.get_corresponding_lineno(made.gi_frame.f_lineno)
                    self.place, self._last = Place(template.name or "", line), piece
                yield piece
            self._last = None

        return watched


def _sources(renderer: Renderer, template_id: str) -> dict[str, list[Place]]:
    """Line, without the blanks around it -> where it stands in the template and what it includes."""
    found: dict[str, list[Place]] = {}
    for path in renderer.with_included(template_id):
        for number, line in enumerate(renderer.catalogue.files[path].split("\n"), start=1):
            if line.strip():
                found.setdefault(line.strip(), []).append(Place(path, number))
    return found


def _best(line: str, traced: list[Place], sources: dict[str, list[Place]], template_id: str) -> Place:
    near = max(
        (p for p in traced if p.template == traced[0].template),
        key=lambda p: p.line,
        default=Place(template_id, 1),
    )
    same = sources.get(line.strip(), [])
    if same:
        return min(same, key=lambda p: (p.template != near.template, abs(p.line - near.line)))
    return near
