"""The names that expressions on facts can use, and the check that one uses no others, made when it is written."""

from __future__ import annotations

import types
from collections.abc import Iterable, Iterator
from typing import Any, get_args, get_origin

from jinja2 import nodes
from pydantic import BaseModel

from provisiond.discovery.expression_functions import FUNCTIONS
from provisiond.inventory.facts import Facts, Neighbour

_MODEL = type[BaseModel]


class Wrong(ValueError):
    """An expression or pattern that cannot be right, whatever the facts."""


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


def check_names(tree: nodes.Template, without: Iterable[str] = ()) -> None:
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
