"""YAML and JSON documents with the line of every place in them, checked by a JSON schema.

A key that stands twice in one mapping is a problem: readers take one of the two without a word.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import yaml

from provisiond.templating.validators.verdict import Problem

NO_JSONSCHEMA = "JSON schema: the Python package jsonschema is not installed"
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_MESSAGE = 300
MAX_DEPTH = 100
_MAY_NEST = re.compile(rf"^(?: {{{MAX_DEPTH // 2},}}| *(?:[-?:] +){{{MAX_DEPTH // 10},}})", re.MULTILINE)


@dataclass(frozen=True)
class Tree:
    """A document read; ``value`` is None where it could not be. ``problems`` are those of reading it."""

    value: Any
    problems: tuple[Problem, ...] = ()
    _nodes: Callable[[], Any] = field(default=lambda: None, repr=False)  # the same with places

    @cached_property
    def _node(self) -> Any:
        return self._nodes()

    def line(self, path: Sequence[Any]) -> int | None:
        """The line of the place, or of the nearest one above it that is there."""
        node = self._node
        at = _line(node) if node is not None else None
        for step in path:
            node = _child(node, step)
            if node is None:
                break
            at = _line(node)
        return at

    def key_line(self, path: Sequence[Any]) -> int | None:
        """The line of the key that the last step of ``path`` names."""
        node = self._node
        for step in path[:-1]:
            node = _child(node, step)
        if isinstance(node, yaml.MappingNode):
            for key, _ in node.value:
                if key.value == str(path[-1]):
                    return _line(key)
        return self.line(path)

    def text_line(self, path: Sequence[Any]) -> int:
        """The line after which the text at ``path`` begins: that of the ``|`` of a block, else the one above its own."""
        node = self._node
        for step in path:
            node = _child(node, step)
        if node is None:
            return 0
        first: int = node.start_mark.line
        return first + 1 if getattr(node, "style", None) in ("|", ">") else first


def read_yaml(text: str) -> list[Tree]:
    """Every document of a YAML text; at least one."""
    trees: list[Tree] = []
    loader = None
    try:
        if deep := _too_deep(text):
            return [
                Tree(
                    None, (Problem(f"not YAML that anybody reads: nested more than {MAX_DEPTH} deep", deep),)
                )
            ]
        loader = _Loader(text)
        while loader.check_node():
            node = loader.get_node()
            trees.append(Tree(loader.construct_document(node), tuple(_twice(node)), lambda node=node: node))  # type: ignore[misc]
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        said = ", ".join(part for part in (error.context, error.problem) if part)
        trees.append(Tree(None, (Problem(f"not YAML: {said}", mark.line + 1 if mark else None),)))
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that is none, such as 2026-13-99
        place = re.search(r"position (\d+)", str(error))
        line = text.count("\n", 0, int(place[1])) + 1 if place else None
        trees.append(Tree(None, (Problem(f"not YAML: {' '.join(str(error).split())}", line),)))
    finally:
        if loader is not None:
            loader.dispose()
    return trees or [Tree(None, (Problem("it is empty"),))]


def _too_deep(text: str) -> int:
    """The line where a YAML text is nested too deeply, or 0. libyaml's composer recurses in C, and ends the process.

    The events are read one by one only where brackets, indents or dashes make it possible at all.
    """
    if text.count("[") + text.count("{") < MAX_DEPTH // 2 and not _MAY_NEST.search(text):
        return 0
    depth = 0
    for event in yaml.parse(text, Loader=_Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
            if depth > MAX_DEPTH:
                return event.start_mark.line + 1 if event.start_mark else 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
    return 0


def read_json(text: str) -> Tree:
    """A JSON document. Raises nothing: what is wrong is in ``problems``."""
    twice: list[str] = []

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            names = [name for name, _ in pairs]
            twice.extend({name for name in names if names.count(name) > 1})
        return made

    def nodes() -> Any:
        """JSON is YAML, but for tabs: good enough for lines, and only where one is asked for."""
        try:
            return _Loader(text.replace("\t", " ")).get_single_node()
        except yaml.YAMLError:
            return None

    try:
        value = json.loads(text, parse_constant=_no_constant, object_pairs_hook=once)
    except ValueError as error:
        said = f"not JSON: {getattr(error, 'msg', error)}"
        return Tree(None, (Problem(said, getattr(error, "lineno", None)),))
    except RecursionError:
        return Tree(None, (Problem("not JSON: it is nested too deeply"),))
    problems = tuple(_twice(nodes())) if twice else ()
    return Tree(value, problems or tuple(Problem(f"the key {n!r} stands twice") for n in twice), nodes)


@dataclass(frozen=True, eq=False)
class Schema:
    """A JSON schema of our own."""

    name: str
    tree: Mapping[str, Any] = field(repr=False)


def by_schema(tree: Tree, schema: Path | Schema, at: Sequence[Any] = ()) -> list[Problem]:
    """What the JSON schema (a file, or ours) says of the tree's part below ``at``. Raises ImportError without jsonschema."""
    part = tree.value
    for step in at:
        part = part[step]
    problems = []
    for error in _validator(schema).iter_errors(part):
        deepest = _nearest(error)
        path = [*at, *deepest.absolute_path]
        message = str(deepest.message)
        unknown = re.findall(r"'([^']+)'", message) if deepest.validator == "additionalProperties" else []
        line = tree.key_line([*path, unknown[0]]) if unknown else tree.line(path)
        where = ".".join(map(str, path)) or "top"
        problems.append(Problem(f"{where}: {_short(message)}", line))
    return sorted(set(problems), key=lambda p: (p.line or 0, p.message))


def texts_in(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], str]]:
    """Every text in a tree with its path."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, child in value.items():
            yield from texts_in(child, (*path, key))
    elif isinstance(value, list):
        for number, child in enumerate(value):
            yield from texts_in(child, (*path, number))


@lru_cache(maxsize=32)
def _validator(schema: Path | Schema) -> Any:
    jsonschema = importlib.import_module("jsonschema")
    referencing = importlib.import_module("referencing")
    importlib.import_module("referencing.jsonschema")
    tree = json.loads(schema.read_text(encoding="utf-8")) if isinstance(schema, Path) else schema.tree
    cls = jsonschema.validators.validator_for(tree, default=jsonschema.Draft7Validator)

    def beside(uri: str) -> Any:
        """What a schema refers to lies beside it, whatever its address says: nothing is fetched."""
        other = schema.parent / uri.rpartition("/")[2] if isinstance(schema, Path) else None
        if other is None or not other.is_file():
            raise referencing.exceptions.NoSuchResource(ref=uri)
        return referencing.Resource.from_contents(
            json.loads(other.read_text(encoding="utf-8")), default_specification=referencing.jsonschema.DRAFT7
        )

    return cls(tree, registry=referencing.Registry(retrieve=beside))


def _nearest(error: Any) -> Any:
    """Of an anyOf or oneOf the branch that fits best, so that the sentence is about the place that is wrong."""
    while error.context:
        branches: dict[Any, list[Any]] = {}
        for inner in error.context:
            branches.setdefault(inner.schema_path[0], []).append(inner)
        best = min(branches.values(), key=lambda e: (_wrong_type(e), len(e)))
        if len({_wrong_type(e) for e in branches.values()}) == 1 and _wrong_type(best):
            return error  # every branch wants another type: the sentence about all of them is the better one
        error = max(best, key=lambda e: len(e.absolute_path))
    return error


def _wrong_type(errors: Sequence[Any]) -> bool:
    return any(e.validator in ("type", "const", "enum") and not e.path for e in errors)


def _child(node: Any, step: Any) -> Any:
    if isinstance(node, yaml.MappingNode):
        return next((value for key, value in node.value if key.value == str(step)), None)
    if isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
        return node.value[step]
    return None


def _twice(node: Any) -> Iterator[Problem]:
    waiting, seen = [node], set()
    while waiting:
        at = waiting.pop()
        if at is None or id(at) in seen:  # an alias leads to the same node again
            continue
        seen.add(id(at))
        if isinstance(at, yaml.MappingNode):
            keys: dict[str, int] = {}
            for key, value in at.value:
                name = getattr(key, "value", None)
                if isinstance(name, str) and name != "<<":
                    if name in keys:
                        yield Problem(
                            f"the key {name!r} stands twice, first in line {keys[name]}", _line(key)
                        )
                    keys.setdefault(name, _line(key))
                waiting.append(value)
        elif isinstance(at, yaml.SequenceNode):
            waiting += at.value


def _line(node: Any) -> int:
    line: int = node.start_mark.line + 1
    return line


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _short(message: str) -> str:
    return message if len(message) <= _MESSAGE else message[:_MESSAGE] + " ..."
