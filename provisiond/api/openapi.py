"""The description of the API (OpenAPI 3.1), made from the table of routes, and a plain page that shows it."""

from __future__ import annotations

import html
import inspect
import re
from collections.abc import Sequence
from typing import Any

from openapi_pydantic import OpenAPI
from pydantic import BaseModel, TypeAdapter
from pydantic.json_schema import models_json_schema

from provisiond.api.problems import Problem
from provisiond.api.routing import PREFIX, Route, Signature, read_signature

_REF = "#/components/schemas/{model}"
_PATTERN = re.compile(r":[^}]*}")
_HEADERS = {
    "if_match": (
        "If-Match",
        "The ETag of the host as you read it: the change is refused (412) if the host has changed since.",
    ),
    "idempotency": (
        "Idempotency-Key",
        "A key of yours: the same request sent again with it gets the first answer again.",
    ),
}


def describe(routes: Sequence[Route], version: str) -> dict[str, Any]:
    """The whole document, checked by openapi-pydantic's model of the specification."""
    signatures = {route: read_signature(route) for route in routes}
    inputs: dict[Any, Any] = {}
    keyed: list[tuple[Any, Any, TypeAdapter[Any]]] = []
    for signature in signatures.values():
        if signature.body is not None:
            keyed.append((id(signature.body), "validation", signature.body))
        if signature.answer is not None:
            keyed.append((signature.answer, "serialization", TypeAdapter(signature.answer)))
    inputs, definitions = TypeAdapter.json_schemas(keyed, ref_template=_REF)
    _, problem = models_json_schema([(Problem, "serialization")], ref_template=_REF)
    schemas = {**problem["$defs"], **definitions.get("$defs", {})}
    paths: dict[str, dict[str, Any]] = {}
    for route, signature in signatures.items():
        operation = _operation(route, signature, inputs)
        paths.setdefault(PREFIX + _PATTERN.sub("}", route.path), {})[route.method.lower()] = operation
    document = {
        "openapi": "3.1.0",
        "info": {
            "title": "provisiond",
            "version": version,
            "description": "Takes machines from 'exists' to 'in service' and back. Errors are problem+json (RFC 9457).",
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
        },
    }
    OpenAPI.model_validate(document)
    return document


def _operation(route: Route, signature: Signature, schemas: dict[Any, Any]) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in signature.path
    ]
    if signature.query is not None:
        parameters += _query_parameters(signature.query)
    for special, (header, text) in _HEADERS.items():
        if special in signature.specials:
            parameters.append(
                {"name": header, "in": "header", "description": text, "schema": {"type": "string"}}
            )
    answer: dict[str, Any] = {"description": "Done."}
    if signature.answer is not None:
        schema = schemas[(signature.answer, "serialization")]
        answer["content"] = {"application/json": {"schema": schema}}
    elif route.media_type != "application/json":
        answer["content"] = {route.media_type: {"schema": {"type": "string"}}}
    status = (
        204
        if signature.answer is None and route.status == 200 and route.media_type == "application/json"
        else route.status
    )
    problem = {"schema": {"$ref": "#/components/schemas/Problem"}}
    operation: dict[str, Any] = {
        "operationId": route.handler.__name__,
        "summary": route.summary,
        "tags": [route.tag],
        "parameters": parameters,
        "responses": {
            str(status): answer,
            "default": {"description": "What went wrong.", "content": {"application/problem+json": problem}},
        },
        "security": [{"token": []}] if route.role else [],
    }
    if doc := inspect.getdoc(route.handler):
        operation["description"] = doc
    if route.role:
        operation["x-role"] = route.role
    if signature.body is not None:
        schema = schemas[(id(signature.body), "validation")]
        operation["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return operation


def _query_parameters(model: type[BaseModel]) -> list[dict[str, Any]]:
    schema = model.model_json_schema(ref_template=_REF)
    required = set(schema.get("required", ()))
    return [
        {
            "name": name,
            "in": "query",
            "required": name in required,
            "description": part.pop("description", ""),
            "schema": {key: value for key, value in part.items() if key != "title"},
        }
        for name, part in schema.get("properties", {}).items()
    ]


def page(routes: Sequence[Route]) -> str:
    """Every path on one plain HTML page, without scripts."""
    rows = []
    for route in sorted(routes, key=lambda r: (r.tag, r.path)):
        cells = (route.method, PREFIX + route.path, route.role or "anybody", route.summary)
        rows.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'><title>provisiond API</title>"
        "<style>body{font:15px sans-serif;margin:2em}td{padding:.2em 1em .2em 0;border-bottom:1px solid #ddd}"
        "td:nth-child(2){font-family:monospace}</style>"
        "<h1>provisiond API</h1><p>The whole description is <a href='openapi.json'>openapi.json</a> (OpenAPI 3.1). "
        "Send your token as <code>Authorization: Bearer TOKEN</code>; roles: viewer &lt; operator &lt; admin.</p>"
        f"<table><tr><th>method<th>path<th>role<th>what it does</tr>{''.join(rows)}</table></html>"
    )
