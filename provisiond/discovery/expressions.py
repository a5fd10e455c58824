"""Expressions on facts, as rules are made of them: Jinja's expression language in the sandbox that templates run in.

An expression holds or does not hold for any facts whatever: what is missing, null or of another kind makes it not hold, with the
reason beside it, and never an error. What no facts could ever mend (wrong syntax, a name that facts do not have) is found when
it is written. The work of one evaluation is bounded by the sandbox's meter.
"""

from __future__ import annotations

import ipaddress
import types
from collections.abc import Callable, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from typing import Any, get_args, get_origin

from jinja2 import TemplateSyntaxError, Undefined, nodes
from jinja2 import filters as jinja_filters
from jinja2.exceptions import TemplateError, UndefinedError
from jinja2.parser import Parser
from pydantic import BaseModel

from provisiond.inventory.facts import Facts, Neighbour
from provisiond.templating.sandbox import LimitReached, Meter, MissingKey, Sandbox, meter, put_meters

MAX_LENGTH = 2000  # characters of an expression
SECONDS = 0.2  # a rule on the facts of a large machine takes well under a millisecond
SIZE = 1 << 16  # bytes made on the way


class Seen(Facts):
    """What expressions see: the facts, with ``serial`` and ``uuid`` null where they are placeholders, and where it was seen.

    ``mac`` is the card it booted from, ``lldp`` what the switch at that card says, ``address`` where it asked from, ``subnet`` the name of
    the subnet that is in; ``n`` (in name patterns) counts the rule's machines from 1.
    """

    mac: str | None = None
    address: str | None = None
    subnet: str | None = None
    lldp: Neighbour | None = None
    n: int = 1


# --- what expressions can call ---------------------------------------------------------------------------


def gib(thing: Any) -> float | None:
    """GiB of a disk, of the memory or of a DIMM, or of a number of bytes; null where that is unknown."""
    if isinstance(thing, Mapping):
        size, mib = thing.get("size"), thing.get("mib")
        thing = size if size is not None else mib * (1 << 20) if mib is not None else None
    if isinstance(thing, bool) or not isinstance(thing, int | float):
        return None
    return round(thing / (1 << 30), 3)


def like(text: Any, pattern: Any) -> bool:
    """Whether a text is like a pattern with * and ?, whatever the case of its letters."""
    return (
        isinstance(text, str)
        and isinstance(pattern, str)
        and fnmatchcase(text.casefold(), pattern.casefold())
    )


def within(address: Any, network: Any) -> bool:
    """Whether an address is in a network such as 10.1.0.0/16."""
    try:
        return ipaddress.ip_address(str(address)) in ipaddress.ip_network(str(network), strict=False)
    except ValueError:
        return False


def pad(number: Any, width: Any = 2) -> str:
    """A number with zeros before it: pad(7, 3) is 007."""
    if not isinstance(width, int) or not 0 <= width <= 20:
        raise ValueError("pad() takes a number and a width of 0 to 20")
    return str(number).zfill(width)


FUNCTIONS: Mapping[str, Callable[..., Any]] = {"gib": gib, "like": like, "within": within, "pad": pad}


def _listed(name: str) -> Callable[..., Any]:
    """A filter that gives a list: what it chose can be counted, and an empty choice does not hold."""
    lazy = jinja_filters.FILTERS[name]

    def listed(*arguments: Any, **options: Any) -> list[Any]:
        return list(lazy(*arguments, **options))

    listed.jinja_pass_arg = lazy.jinja_pass_arg  # type: ignore[attr-defined]
    return listed


_ORDER = ("lt", "<", "lessthan", "le", "<=", "gt", ">", "greaterthan", "ge", ">=")


class _Expressions(Sandbox):
    """The templates' sandbox with the functions above. Selecting filters give lists; null is neither more nor less than anything, and
    a part of null is null."""

    def __init__(self) -> None:
        super().__init__({})
        self.globals.clear()
        self.globals.update(FUNCTIONS)
        for name in ("select", "reject", "selectattr", "rejectattr", "map"):
            self.filters[name] = _listed(name)
        for name in _ORDER:
            self.tests[name] = _known_only(self.tests[name])
        self.filters["sum"] = jinja_filters.FILTERS["sum"]
        self.finalize = _plain_text

    def getattr(self, obj: Any, attribute: str) -> Any:
        return None if obj is None else super().getattr(obj, attribute)

    def getitem(self, obj: Any, argument: Any) -> Any:
        return None if obj is None else super().getitem(obj, argument)

    def is_safe_callable(self, obj: Any) -> bool:
        return obj in FUNCTIONS.values() or super().is_safe_callable(obj)


def _known_only(test: Any) -> Callable[..., bool]:
    return lambda value, other: value is not None and other is not None and bool(test(value, other))


def _plain_text(value: Any) -> str:
    """What ``{{ value }}`` puts into a name: texts and numbers."""
    if isinstance(value, Undefined):
        return str(value)  # raises MissingKey
    if value is None or isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError("unknown" if value is None else f"a {type(value).__name__} is no part of a name")
    meter.get().make(len(str(value)))
    return str(value)


# --- expressions and patterns ------------------------------------------------------------------------------


class Wrong(ValueError):
    """An expression or pattern that cannot be right, whatever the facts."""


class Expression:
    """One expression, checked and compiled. Raises Wrong."""

    def __init__(self, source: str) -> None:
        self.source = source
        tree = _parsed(source, lambda: _expression_tree(source))
        _check_names(tree, without=("n",))
        put_meters(tree)
        self._template = _environment().from_string(tree)

    def holds(self, values: Mapping[str, Any]) -> tuple[bool, str]:
        """Whether it holds for ``values`` (``context.values_of``), and if not because of something unknown, why."""
        token = meter.set(Meter(SECONDS, SIZE))
        try:
            context = self._template.new_context(dict(values))
            for _ in self._template.root_render_func(context):
                pass
            result = context.vars["result"]
            return bool(result) and not isinstance(result, Undefined), ""
        except Exception as error:
            return False, _because(error)
        finally:
            meter.reset(token)


class NamePattern:
    """A text with {{ expressions }} that makes names of hosts. Raises Wrong."""

    def __init__(self, source: str) -> None:
        self.source = source
        tree = _parsed(source, lambda: _environment().parse(source))
        for node in tree.body:
            if not isinstance(node, nodes.Output):
                raise Wrong("a name is text with {{ expressions }} in it; no blocks")
        _check_names(tree)
        self.counts = any(name.name == "n" for name in tree.find_all(nodes.Name))
        self._template = _environment().from_string(tree)

    def text(self, values: Mapping[str, Any], n: int) -> tuple[str, str]:
        """The text it makes ('' where something in it is unknown), and why there is none."""
        token = meter.set(Meter(SECONDS, SIZE))
        try:
            context = self._template.new_context({**values, "n": n})
            return "".join(self._template.root_render_func(context)), ""
        except Exception as error:
            return "", _because(error)
        finally:
            meter.reset(token)


@lru_cache(maxsize=1024)
def expression(source: str) -> Expression:
    """The compiled expression, kept. Raises Wrong."""
    return Expression(source)


@lru_cache(maxsize=1024)
def name_pattern(source: str) -> NamePattern:
    """The compiled pattern, kept. Raises Wrong."""
    return NamePattern(source)


@lru_cache(maxsize=1)
def _environment() -> _Expressions:
    return _Expressions()


def _expression_tree(source: str) -> nodes.Template:
    environment = _environment()
    parser = Parser(environment, source, state="variable")
    parsed = parser.parse_expression()
    if not parser.stream.eos:
        raise TemplateSyntaxError(f"unexpected {str(parser.stream.current.value)[:40]!r}", 1, None, None)
    tree = nodes.Template([nodes.Assign(nodes.Name("result", "store"), parsed, lineno=1)], lineno=1)
    tree.set_environment(environment)
    return tree


def _parsed(source: str, parse: Callable[[], nodes.Template]) -> nodes.Template:
    if not source.strip():
        raise Wrong("is empty")
    if len(source) > MAX_LENGTH:
        raise Wrong(f"has more than {MAX_LENGTH} characters")
    try:
        tree = parse()
        for filtered in tree.find_all(nodes.Filter):
            if filtered.name not in _environment().filters or filtered.name.startswith("_"):
                if filtered.name in ("_turns", "_concat"):
                    continue  # put in by the meter
                raise Wrong(f"there is no filter {filtered.name!r}")
        for test in tree.find_all(nodes.Test):
            if test.name not in _environment().tests:
                raise Wrong(f"there is no test {test.name!r}")
    except TemplateSyntaxError as error:
        raise Wrong(f"its syntax is wrong: {error.message}") from None
    except TemplateError as error:
        raise Wrong(str(error.message)) from None
    except RecursionError:
        raise Wrong("is nested too deeply") from None
    return tree


def _because(error: Exception) -> str:
    if isinstance(error, MissingKey):
        return f"{error.key} is unknown" if error.key else "something in it is unknown"
    if isinstance(error, UndefinedError | TypeError):
        return "something in it is unknown"
    if isinstance(error, LimitReached):
        return str(error).partition(" (templates.")[0]
    return str(error)[:200] or type(error).__name__


# --- names that facts have -----------------------------------------------------------------------------------

_MODEL = type[BaseModel]


def _check_names(tree: nodes.Template, without: Iterable[str] = ()) -> None:
    """Refuse names and attributes that no facts have, where it can be seen what they are asked of."""
    without = frozenset(without)
    for node in _walk(tree):
        if isinstance(node, nodes.Name) and node.ctx == "load":
            if node.name not in FUNCTIONS and (node.name not in Seen.model_fields or node.name in without):
                raise Wrong(f"there is no {node.name!r}; there are: {_names(Seen, without)}")
        elif isinstance(node, nodes.Call):
            if not isinstance(node.node, nodes.Name | nodes.Getattr):
                raise Wrong(f"only functions are called: {', '.join(FUNCTIONS)}")
            if isinstance(node.node, nodes.Name) and node.node.name not in FUNCTIONS:
                raise Wrong(f"there is no function {node.node.name!r}; there are: {', '.join(FUNCTIONS)}")
        elif isinstance(node, nodes.Getattr | nodes.Getitem):
            if isinstance(node, nodes.Getattr) and node.attr.startswith("_"):
                raise Wrong(f"there is no {node.attr!r}")
            _kind(node)
        elif isinstance(node, nodes.Filter) and node.node is not None:
            _check_attribute(node)


def _walk(node: nodes.Node) -> Iterator[nodes.Node]:
    for child in node.iter_child_nodes():
        yield child
        yield from _walk(child)


def _kind(node: nodes.Node | None) -> tuple[_MODEL | None, bool]:
    """(what the node is one of, whether it is a list of them); (None, False) where that cannot be said. Raises Wrong."""
    if isinstance(node, nodes.Name):
        field = Seen.model_fields.get(node.name)
        return _shape(field.annotation) if field else (None, False)
    if isinstance(node, nodes.Filter):
        owner, many = _kind(node.node)
        if many and node.name in (
            "select", "reject", "selectattr", "rejectattr", "list", "sort", "unique"
        ):  # fmt: skip
            return owner, True
        return (owner, False) if many and node.name in ("first", "last") else (None, False)
    if isinstance(node, nodes.Getitem) and not (
        isinstance(node.arg, nodes.Const) and isinstance(node.arg.value, str)
    ):
        owner, many = _kind(node.node)
        return (owner, False) if many else (None, False)
    if isinstance(node, nodes.Getattr | nodes.Getitem):
        name = node.attr if isinstance(node, nodes.Getattr) else node.arg.value  # type: ignore[attr-defined]
        owner, many = _kind(node.node)
        if owner is not None and many and name not in ("index", "count"):
            raise Wrong(
                f"a list has no {name!r}; choose of it by [0], or by | selectattr('{name}', ...) | count > 0"
            )
        if owner is None or many:
            return None, False
        if name not in owner.model_fields and name not in ("get", "items", "keys", "values"):
            raise Wrong(f"there is no {name!r} in {_said(node.node)}; there are: {_names(owner)}")
        return _shape(owner.model_fields[name].annotation) if name in owner.model_fields else (None, False)
    return None, False


def _check_attribute(node: nodes.Filter) -> None:
    """The attribute that selectattr, rejectattr, map, sort and unique are told by name."""
    owner, many = _kind(node.node)
    given: Any = None
    if node.name in ("selectattr", "rejectattr") and node.args:
        given = node.args[0]
    elif node.name in ("map", "sort", "unique", "min", "max"):
        given = next((k.value for k in node.kwargs if k.key == "attribute"), None)
    if owner is None or not many or not isinstance(given, nodes.Const) or not isinstance(given.value, str):
        return
    model: _MODEL | None = owner
    for part in given.value.split("."):
        if model is None:
            return
        if part not in model.model_fields:
            raise Wrong(f"there is no {part!r} in each of {_said(node.node)}; there are: {_names(model)}")
        model = _shape(model.model_fields[part].annotation)[0]


def _shape(annotation: Any) -> tuple[_MODEL | None, bool]:
    """The model in a field's annotation, and whether it is a list of it."""
    origin = get_origin(annotation)
    if origin is list:
        inner = get_args(annotation)[0]
        return (inner, True) if isinstance(inner, type) and issubclass(inner, BaseModel) else (None, False)
    if origin is types.UnionType:
        found = [_shape(part)[0] for part in get_args(annotation)]
        return next((model for model in found if model is not None), None), False
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation, False
    return None, False


def _names(model: _MODEL, without: Iterable[str] = ()) -> str:
    return ", ".join(sorted(set(model.model_fields) - set(without) - {"version" if model is Seen else ""}))


def _said(node: nodes.Node | None) -> str:
    if isinstance(node, nodes.Name):
        return node.name
    if isinstance(node, nodes.Getattr):
        return f"{_said(node.node)}.{node.attr}"
    if isinstance(node, nodes.Filter | nodes.Getitem):
        return _said(node.node)
    return "it"
