"""The sandbox templates run in: Jinja2's immutable one, with allow-lists instead of deny-lists, and a meter on all work.

Nothing in Python stops a running thread, so a limit of time must be asked for by the work itself. Every way for a template to
do unbounded work passes a meter: each turn of a loop, each call of a macro, each include, each string that is made. The meter
counts turns and bytes and looks at the clock; what is over the limit ends the rendering. A single operation between two looks
is small, because its operands are. So a rendering ends soon after its deadline (measured: within a few milliseconds of it),
though not exactly at it, and it holds its thread until then.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from functools import partial
from typing import Any

from jinja2 import Environment, StrictUndefined, Undefined, nodes, pass_context, pass_environment
from jinja2 import filters as jinja_filters
from jinja2 import tests as jinja_tests
from jinja2.environment import TemplateModule
from jinja2.exceptions import SecurityError, UndefinedError
from jinja2.loaders import DictLoader
from jinja2.runtime import Context, LoopContext, Macro
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

from provisiond.templating.quoted import MarkingCodeGenerator, Quoted, joined, refuse_unquoted
from provisiond.templating.quoting import QUOTING

MAX_RANGE = 10_000
MAX_TURNS = 100_000
MAX_DEPTH = 24
MAX_INT_BITS = 256
LOOK_EVERY = 64

_METHODS: dict[type, frozenset[str]] = {
    str: frozenset(
        {"lower", "upper", "title", "capitalize", "strip", "lstrip", "rstrip", "split", "rsplit", "splitlines", "partition",
         "rpartition", "startswith", "endswith", "find", "rfind", "count", "isdigit", "isalnum", "removeprefix", "removesuffix"}
    ),
    dict: frozenset({"get", "items", "keys", "values"}),
    list: frozenset({"index", "count"}),
    tuple: frozenset({"index", "count"}),
    LoopContext: frozenset(
        {"index", "index0", "revindex", "revindex0", "first", "last", "length", "previtem", "nextitem", "depth", "depth0", "cycle", "changed"}
    ),
}  # fmt: skip
_METHODS[Quoted] = _METHODS[str]
_FILTERS = (
    "default", "d", "lower", "upper", "capitalize", "title", "first", "last", "length", "count", "sort", "unique", "list",
    "map", "select", "reject", "selectattr", "rejectattr", "int", "string", "items", "dictsort", "abs", "min", "max", "round",
)  # fmt: skip
_TESTS = (
    "defined", "undefined", "none", "string", "number", "integer", "float", "boolean", "true", "false", "mapping", "sequence",
    "iterable", "odd", "even", "divisibleby", "in", "eq", "equalto", "==", "ne", "!=", "lt", "<", "lessthan", "le", "<=",
    "gt", ">", "greaterthan", "ge", ">=",
)  # fmt: skip


class LimitReached(Exception):
    """A rendering did more than it may; the message says of what."""


class TemplateFailure(Exception):
    """A template called ``fail('why', 'storage.raids')``, or used a description that does not fit the host; ``key`` is the place."""

    def __init__(self, message: str, key: str = "") -> None:
        super().__init__(message)
        self.key = key


class MissingKey(UndefinedError):
    """A name that is not there was used; ``key`` is it and ``owner`` the mapping it was looked for in."""

    def __init__(self, message: str | None = None, *, key: str = "", owner: Any = None) -> None:
        super().__init__(message)
        self.key, self.owner = key, owner


class Meter:
    """Counts the work of one rendering: ``seconds`` and output ``size`` bytes are its limits."""

    def __init__(self, seconds: float, size: int) -> None:
        self.seconds, self.size = seconds, size
        self.deadline = time.monotonic() + seconds
        self._turns = 0
        self._made = 0
        self.depth = 0

    def turn(self) -> None:
        """One more step of work."""
        self._turns += 1
        if self._turns > MAX_TURNS:
            raise LimitReached(f"it takes more than {MAX_TURNS} turns of loops, calls and includes")
        if self._turns % LOOK_EVERY == 0:
            self.look()

    def look(self) -> None:
        if time.monotonic() > self.deadline:
            raise LimitReached(f"it takes longer than {self.seconds:g} s (templates.render_seconds)")

    def make(self, size: int) -> None:
        """A string or list of ``size`` is about to be made."""
        self._made += size
        if size > self.size:
            raise LimitReached(f"it makes more than {self.size} bytes (templates.render_bytes)")
        if self._made > 32 * self.size:
            raise LimitReached(f"it makes more than {32 * self.size} bytes on the way")


meter: ContextVar[Meter] = ContextVar("meter")
flags_now: ContextVar[Mapping[str, bool]] = ContextVar("flags_now")
"""The feature flags that the template being rendered declares, as they are for its host."""


class Missing(StrictUndefined):
    """Any use of a name that is not there is an error that knows the name."""

    __slots__ = ()

    def _fail(self, *_args: Any, **_kwargs: Any) -> Any:
        message = self._undefined_message
        exception = self._undefined_exception
        if exception is UndefinedError:
            raise MissingKey(message, key=str(self._undefined_name or ""), owner=self._undefined_obj)
        raise exception(message)

    _fail_with_undefined_error = _fail
    __iter__ = __str__ = __len__ = __bool__ = __eq__ = __ne__ = __hash__ = __contains__ = _fail
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = _fail
    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __pos__ = __neg__ = __call__ = __getitem__ = _fail
    __lt__ = __le__ = __gt__ = __ge__ = __int__ = __float__ = __complex__ = __pow__ = __rpow__ = _fail

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self._fail()


def unusable(name: str, why: str, key: str) -> Missing:
    """Stands for the description ``name`` of a host that it does not fit: any use of it is a TemplateFailure that says ``why``."""
    return Missing(hint=why, name=name, exc=partial(TemplateFailure, key=key))  # type: ignore[arg-type]


class Sandbox(ImmutableSandboxedEnvironment):
    """The environment of one release. Templates load each other by id out of ``files`` and from nowhere else."""

    code_generator_class = MarkingCodeGenerator
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def __init__(self, files: dict[str, str]) -> None:
        self.literals: dict[str, Quoted] = {}
        super().__init__(
            loader=DictLoader(files),
            undefined=Missing,
            autoescape=False,
            trim_blocks=True,
            lstrip_blocks=True,
            keep_trailing_newline=True,
            auto_reload=False,
            cache_size=-1,
            optimized=False,  # constants are folded without a meter, so they are not folded
            finalize=_finalize,
        )
        self.globals.clear()
        self.globals.update(
            {"range": _range, "dict": dict, "namespace": Namespace, "fail": _fail, "flag": _flag}
        )
        self.filters.clear()
        self.filters.update({name: jinja_filters.FILTERS[name] for name in _FILTERS})
        self.filters.update({name: _of_what_is_there(quote) for name, quote in QUOTING.items()})
        self.filters.update(
            {
                "join": _join,
                "replace": _replace,
                "indent": _indent,
                "trim": _trim,
                "_turns": _turns,
                "_concat": _concat,
            }
        )
        self.tests.clear()
        self.tests.update({name: jinja_tests.TESTS[name] for name in _TESTS})
        self.concat = _metered_concat  # type: ignore[method-assign]

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        for filtered in tree.find_all(nodes.Filter):
            if filtered.name.startswith("_"):
                raise SecurityError(f"there is no filter {filtered.name!r}")
        put_meters(tree)
        return tree

    def getattr(self, obj: Any, attribute: str) -> Any:
        if type(obj) is dict and attribute in obj:  # a parameter named "items" is the parameter
            return obj[attribute]
        return super().getattr(obj, attribute)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if attr.startswith("_"):
            return False
        if type(obj) is Namespace:
            return True
        if type(obj) is TemplateModule:
            return isinstance(value, Macro | str | int | float | dict | list | tuple)
        return attr in _METHODS.get(type(obj), ())

    def is_safe_callable(self, obj: Any) -> bool:
        if isinstance(obj, Macro | LoopContext) or obj in (_range, dict, Namespace, _fail, _flag):
            return True
        owner = getattr(obj, "__self__", None)
        return getattr(obj, "__name__", "") in _METHODS.get(type(owner), ())

    def call(self, context: Context, obj: Any, *args: Any, **kwargs: Any) -> Any:
        counter = meter.get()
        counter.turn()
        counter.depth += 1
        try:
            if counter.depth > MAX_DEPTH:
                raise LimitReached(f"it nests more than {MAX_DEPTH} calls")
            return super().call(context, obj, *args, **kwargs)
        finally:
            counter.depth -= 1

    def get_template(self, name: Any, parent: str | None = None, globals: Any = None) -> Any:
        if counter := meter.get(None):
            counter.turn()
        return super().get_template(name, parent, globals)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        meter.get().turn()
        if operator == "%" and isinstance(left, str):
            raise SecurityError("'%' does not format texts here; use '~'")
        if operator == "**" and not (isinstance(right, int) and 0 <= right <= 64):
            raise LimitReached("it raises to a power that is not between 0 and 64")
        for side in (left, right):
            if isinstance(side, int) and side.bit_length() > MAX_INT_BITS:
                raise LimitReached(f"it counts with numbers of more than {MAX_INT_BITS} bits")
        if operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            meter.get().make(len(left) + len(right))
        if operator == "*":
            for sequence, times in ((left, right), (right, left)):
                if hasattr(sequence, "__len__") and isinstance(times, int):
                    meter.get().make(len(sequence) * max(times, 0))
        made = super().call_binop(context, operator, left, right)
        return joined(made, (left, right)) if type(made) is str else made


def _of_what_is_there(quote: Callable[[Any], str]) -> Callable[[Any], str]:
    """The filter, with a missing name reported as missing and not as a wrong value."""

    def checked(value: Any) -> str:
        made = quote(str(value) if isinstance(value, Undefined) else value)
        meter.get().make(len(made))
        return Quoted(made)

    return checked


def put_meters(tree: nodes.Template) -> None:
    """Let each loop draw its items through a meter, and each ``~`` be counted."""

    def concat_to_filter(node: nodes.Node) -> None:
        for name, value in node.iter_fields():
            if isinstance(value, nodes.Node):
                concat_to_filter(value)
                if isinstance(value, nodes.Concat):
                    setattr(node, name, _counted(value))
            elif isinstance(value, list):
                for place, item in enumerate(value):
                    if isinstance(item, nodes.Node):
                        concat_to_filter(item)
                        if isinstance(item, nodes.Concat):
                            value[place] = _counted(item)

    concat_to_filter(tree)
    for loop in tree.find_all(nodes.For):
        loop.iter = nodes.Filter(loop.iter, "_turns", [], [], None, None, lineno=loop.lineno)


def _counted(node: nodes.Concat) -> nodes.Filter:
    return nodes.Filter(
        nodes.List(node.nodes, lineno=node.lineno), "_concat", [], [], None, None, lineno=node.lineno
    )


@pass_context
def _finalize(_context: Context, value: Any) -> Any:
    """What ``{{ value }}`` puts out: texts that may stand there (see quoted.py) and numbers; no mapping, null or function by mistake."""
    if isinstance(value, str):
        meter.get().make(len(value))
        refuse_unquoted(value)
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(
        value, Undefined
    ):  # strict where it is Missing; empty for an inline "if" without its "else"
        return str(value)
    raise ValueError(
        f"a {type(value).__name__} cannot be put out as it is; pick a part of it, or use the 'yaml' filter"
    )


class _Metered(Sequence[Any]):
    """A sequence that counts a turn for every item drawn from it."""

    def __init__(self, items: Sequence[Any]) -> None:
        self._items = items

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, place: Any) -> Any:
        return self._items[place]

    def __iter__(self) -> Iterator[Any]:
        return _drawn(self._items)


def _drawn(items: Iterable[Any]) -> Iterator[Any]:
    counter = meter.get()
    for item in items:
        counter.turn()
        yield item


def _turns(items: Any) -> Any:
    if isinstance(items, list | tuple | range):
        return _Metered(items)
    return _drawn(items)


def _range(*arguments: int) -> range:
    """Python's range of at most MAX_RANGE numbers."""
    numbers = range(*arguments)
    if len(numbers) > MAX_RANGE:
        raise LimitReached(f"its range has more than {MAX_RANGE} numbers")
    return numbers


def _fail(why: str, key: str = "") -> None:
    """End the rendering with a reason of the template's own; ``key`` is what in the host's data it is about."""
    raise TemplateFailure(str(why)[:500], str(key)[:200])


def _flag(name: str) -> bool:
    """Whether a feature flag is on for this host. One that the header does not declare is an error; an unknown one is off."""
    declared = flags_now.get({})
    if not isinstance(name, str) or name not in declared:
        raise TemplateFailure(f"flag {str(name)[:64]!r} is not declared in the header under flags", "flags")
    return declared[name]


def _metered_concat(pieces: Iterable[str]) -> Quoted:
    """What a macro or a block has put out, piece by piece through ``_finalize``."""
    kept = list(pieces)
    meter.get().make(sum(map(len, kept)))
    return Quoted("".join(kept))


def _concat(parts: list[Any]) -> str:
    texts = [_scalar_text(p) for p in parts]
    meter.get().make(sum(map(len, texts)))
    return joined("".join(texts), parts)


def _scalar_text(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float | Undefined):
        return str(value)
    raise ValueError(f"a {type(value).__name__} cannot be made part of a text")


@pass_environment
def _join(
    environment: Environment, items: Iterable[Any], separator: str = "", attribute: str | None = None
) -> str:
    if attribute is not None:
        items = map(jinja_filters.make_attrgetter(environment, attribute), items)
    parts: list[Any] = []
    pieces: list[str] = []
    for item in _drawn(items):
        text = _scalar_text(item)
        meter.get().make(len(text) + len(separator))
        parts.append(item)
        pieces.append(text)
    made = separator.join(pieces)
    meter.get().make(len(made))
    return joined(made, [*parts, separator or 0])


def _replace(text: str, old: str, new: str) -> str:
    if not isinstance(text, str) or not old:
        raise ValueError("'replace' needs a text, and something to look for")
    meter.get().make(len(text) + text.count(old) * len(new))
    return joined(text.replace(old, new), (text, new))


def _indent(text: str, width: int = 4, first: bool = False) -> str:
    if not isinstance(text, str) or not 0 <= width <= 64:
        raise ValueError("'indent' needs a text and a width of 0 to 64")
    meter.get().make(len(text) + (text.count("\n") + 1) * width)
    pad = " " * width
    lines = text.split("\n")
    rest = [pad + line if line else line for line in lines[1:]]
    return joined("\n".join([pad + lines[0] if first else lines[0], *rest]), (text,))


def _trim(text: str, chars: str | None = None) -> str:
    if not isinstance(text, str):
        raise ValueError("'trim' needs a text")
    return joined(text.strip(chars), (text,))
