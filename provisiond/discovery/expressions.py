"""Expressions on facts, as rules are made of them: Jinja's expression language in the sandbox that templates run in.

An expression holds or does not hold for any facts whatever: what is missing, null or of another kind makes it not hold, with the
reason beside it, and never an error. What no facts could ever mend (wrong syntax, a name that facts do not have) is found when
it is written. The work of one evaluation is bounded by the sandbox's meter.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from jinja2 import TemplateSyntaxError, Undefined, nodes
from jinja2 import filters as jinja_filters
from jinja2.exceptions import TemplateError, UndefinedError
from jinja2.parser import Parser

from provisiond.discovery.expression_functions import FUNCTIONS
from provisiond.discovery.fact_names import Wrong, check_names
from provisiond.templating.sandbox import LimitReached, Meter, MissingKey, Sandbox, meter, put_meters

MAX_LENGTH = 2000  # characters of an expression
SECONDS = 0.2  # a rule on the facts of a large machine takes well under a millisecond
SIZE = 1 << 16  # bytes made on the way


def _listed(name: str) -> Callable[..., Any]:
    """A filter that gives a list: what it chose can be counted, and an empty choice does not hold."""
    lazy = jinja_filters.FILTERS[name]

    def listed(*arguments: Any, **options: Any) -> list[Any]:
        return list(lazy(*arguments, **options))

    listed.jinja_pass_arg = lazy.jinja_pass_arg  # type: ignore[attr-defined]
    return listed


_ORDER = ("lt", "<", "lessthan", "le", "<=", "gt", ">", "greaterthan", "ge", ">=")


class _Expressions(Sandbox):
    """The templates' sandbox with FUNCTIONS. Selecting filters give lists; null is neither more nor less than anything, and
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


class Expression:
    """One expression, checked and compiled. Raises Wrong."""

    def __init__(self, source: str) -> None:
        self.source = source
        tree = _parsed(source, lambda: _expression_tree(source))
        check_names(tree, without=("n",))
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
        check_names(tree)
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
