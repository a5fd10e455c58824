"""Rendering: one template of a release and the context of one host make the exact text that host is given."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import Template, TemplateNotFound, TemplateSyntaxError, meta, nodes
from jinja2.exceptions import TemplateError

from provisiond.errors import RenderError
from provisiond.templating.catalogue import Catalogue
from provisiond.templating.headers import Parameter
from provisiond.templating.sandbox import (
    LimitReached,
    Meter,
    MissingKey,
    Sandbox,
    TemplateFailure,
    flags_now,
    meter,
)


@dataclass(frozen=True)
class Limits:
    """The most one rendering may take (templates.render_seconds) and give (templates.render_bytes)."""

    seconds: float = 2.0
    size: int = 1 << 20


class Renderer:
    """Renders the templates of one release. Compiled templates are kept as long as it is; one per digest is enough.

    ``render`` is synchronous and takes about a millisecond; from a coroutine, call it by ``asyncio.to_thread`` where templates
    are not trusted to be quick: it may hold its thread for ``limits.seconds``. It may be called by several threads at once.
    """

    def __init__(self, catalogue: Catalogue, limits: Limits | None = None) -> None:
        self.catalogue = catalogue
        self.limits = limits or Limits()
        self._sandbox = Sandbox(dict(catalogue.files))
        self._parameters: dict[str, dict[str, Parameter]] = {}
        self._chosen: dict[tuple[str, str, str], str] = {}
        self._flags: dict[str, frozenset[str]] = {}

    def find(self, kind: str, family: str = "", version: str = "") -> str:
        """The id of the template that suits; see Catalogue.find."""
        wanted = (kind, family, version)
        if wanted not in self._chosen:
            self._chosen[wanted] = self.catalogue.find(kind, family, version)
        return self._chosen[wanted]

    def parameters(self, template_id: str) -> Mapping[str, Parameter]:
        """Every parameter that the template and what it includes declare. Raises RenderError."""
        if template_id not in self._parameters:
            found: dict[str, Parameter] = {}
            for path in self.with_included(template_id):
                for name, parameter in self.catalogue.headers[path].parameters.items():
                    if found.setdefault(name, parameter) != parameter:
                        raise RenderError(
                            path,
                            f"it declares parameter {name!r} in another way than {template_id} does",
                            key=name,
                        )
            self._parameters[template_id] = found
        return self._parameters[template_id]

    def flags(self, template_id: str) -> frozenset[str]:
        """The names of the feature flags that the template and what it includes declare. Raises RenderError."""
        if template_id not in self._flags:
            headers = [self.catalogue.headers[path] for path in self.with_included(template_id)]
            self._flags[template_id] = frozenset(name for header in headers for name in header.flags)
        return self._flags[template_id]

    def render(self, template_id: str, context: Mapping[str, Any]) -> str:
        """The text that ``template_id`` makes of ``context`` (see context.py for what is in it).

        Parameters the host lacks get the default of the template's header; ``flags`` of the context are what ``flag('name')``
        answers with. Raises RenderError, which names the template, the
        line, the host and the missing or wrong key.
        """
        host = _host_name(context)
        values = dict(context)
        values["parameters"] = self.filled(template_id, context.get("parameters", {}), host)
        on = values.pop("flags", {})  # templates ask by flag('name'), which knows what they have declared
        declared = flags_now.set({name: bool(on.get(name, False)) for name in self.flags(template_id)})
        counter = Meter(self.limits.seconds, self.limits.size)
        token = meter.set(counter)
        try:
            template = self._sandbox.get_template(template_id)
            pieces: list[str] = []
            size = 0
            for piece in template.root_render_func(template.new_context(values)):
                size += len(piece)
                if size > counter.size:
                    raise LimitReached(f"it puts out more than {counter.size} bytes (templates.render_bytes)")
                pieces.append(piece)
            counter.look()
            text = "".join(pieces)
            if len(text.encode()) > counter.size:
                raise LimitReached(f"it puts out more than {counter.size} bytes (templates.render_bytes)")
            return text
        except RenderError:
            raise
        except Exception as error:
            raise _explained(error, template_id, host, values) from None
        finally:
            meter.reset(token)
            flags_now.reset(declared)

    def filled(self, template_id: str, given: Mapping[str, Any], host: str) -> dict[str, Any]:
        """The given parameters and the defaults of those the host lacks. Raises RenderError for a wrong or missing one."""
        filled = dict(given)
        for name, parameter in self.parameters(template_id).items():
            if name not in filled:
                if parameter.required:
                    raise RenderError(
                        template_id,
                        f"host {host} has no parameter {name!r} ({parameter.about}); set it on the host, its group, subnet or domain",
                        key=f"parameters.{name}",
                    )
                filled[name] = parameter.default
            elif problem := parameter.check(filled[name]):
                raise RenderError(
                    template_id, f"parameter {name!r} of host {host} {problem}", key=f"parameters.{name}"
                )
        return filled

    def with_included(self, template_id: str) -> list[str]:
        """The template and all it includes, imports or extends, by name only: a name made up at run time is refused. Raises RenderError."""
        seen: list[str] = []
        waiting = [template_id]
        while waiting:
            path = waiting.pop(0)
            if path in seen:
                continue
            if path not in self.catalogue.files:
                raise RenderError(
                    seen[-1] if seen else path, f"there is no template {path!r} in this release", key=path
                )
            seen.append(path)
            try:
                tree = self._sandbox.parse(self.catalogue.files[path], path)
            except (TemplateSyntaxError, TemplateError) as error:
                raise _explained(error, path, "", {}) from None
            except RecursionError:
                raise RenderError(path, "it is nested too deeply") from None
            for name in meta.find_referenced_templates(tree):
                if name is None:
                    lines = [
                        n.lineno
                        for n in tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends))
                    ]
                    raise RenderError(
                        path,
                        "an include must name its template in plain quotes",
                        line=min(lines, default=None),
                    )
                waiting.append(name)
        return seen


def _host_name(context: Mapping[str, Any]) -> str:
    host = context.get("host")
    return str(host.get("name", "")) if isinstance(host, Mapping) else ""


def _explained(error: BaseException, template_id: str, host: str, values: Mapping[str, Any]) -> RenderError:
    """What went wrong, where, with which key and for which host."""
    if isinstance(error, TemplateSyntaxError):
        return RenderError(
            error.name or template_id, f"its syntax is wrong: {error.message}", line=error.lineno
        )
    path, line = _place(error, template_id)
    of_host = f" (rendered for host {host})" if host else ""
    if isinstance(error, MissingKey):
        owner = _path_of(error.owner, values)
        key = f"{owner}.{error.key}" if owner else error.key
        return RenderError(path, f"{key!r} is missing{of_host}", line=line, key=key)
    if isinstance(error, TemplateNotFound):
        return RenderError(
            path, f"there is no template {error.name!r} in this release", line=line, key=str(error.name)
        )
    if isinstance(error, RecursionError):
        return RenderError(path, f"it calls or includes itself without end{of_host}", line=line)
    if isinstance(
        error,
        LimitReached
        | TemplateFailure
        | ValueError
        | TypeError
        | ArithmeticError
        | LookupError
        | TemplateError,
    ):
        said = (
            str(error)
            if isinstance(error, LimitReached | TemplateFailure | ValueError | TemplateError)
            else f"{type(error).__name__}: {error}"
        )
        about = error.key if isinstance(error, TemplateFailure) else ""
        return RenderError(
            path, f"{about}: {said}{of_host}" if about else f"{said}{of_host}", line=line, key=about or None
        )
    return RenderError(path, f"{type(error).__name__} while rendering{of_host}", line=line)


def _place(error: BaseException, template_id: str) -> tuple[str, int | None]:
    """Template and line of the innermost frame that belongs to a template."""
    path, line = template_id, None
    trace = error.__traceback__
    while trace is not None:
        template = trace.tb_frame.f_globals.get("__jinja_template__")
        if isinstance(template, Template):
            path, line = template.name or template_id, template.get_corresponding_lineno(trace.tb_lineno)
        trace = trace.tb_next
    return path, line


def _path_of(owner: Any, values: Mapping[str, Any], prefix: str = "", depth: int = 0) -> str:
    """The dotted name under which a template reaches the mapping ``owner``; empty when it is not found."""
    if owner is None or depth > 3 or not isinstance(owner, dict):
        return ""
    for name, value in values.items():
        if value is owner:
            return f"{prefix}{name}"
        if isinstance(value, dict) and (found := _path_of(owner, value, f"{prefix}{name}.", depth + 1)):
            return found
    return ""
