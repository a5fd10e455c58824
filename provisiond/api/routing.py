"""Typed handlers: a route's parameters and answer are read from its handler's signature, once, when the app is made.

A handler is an async function. Its parameters are found by name: ``deps`` (what the daemon handed in), ``who`` (the Principal),
``query`` and ``body`` (pydantic models), ``request`` (aiohttp's, for streams), ``if_match`` (the header, or None),
``idempotency`` (Once or None); any other name stands in the path. It returns a model, an ``Answer``, None (204) or a response.
A request goes through in this order: token, role, size, depth, parse, validate, handle; so strangers' bodies are never read.
"""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Generic, Literal, Protocol, TypeVar, get_args, get_origin, get_type_hints

from aiohttp import web
from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import to_json

from provisiond.api.problems import Refused, field_errors, problem_response
from provisiond.errors import Denied, FieldError, Invalid, NotFound

T = TypeVar("T")
Role = Literal["viewer", "operator", "admin"]
RANK = {"viewer": 1, "operator": 2, "admin": 3}
PREFIX = "/api/v1"
MAX_DEPTH = 32  # levels of nested JSON; a host's parameters need a handful

_SPECIAL = {"deps", "who", "query", "body", "request", "if_match", "idempotency"}
_STRINGS = re.compile(rb'"(?:[^"\\]++|\\.)*+"', re.DOTALL)
_ALIKE = bytes.maketrans(b"{}", b"[]")
_NOT_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


class Caller(Protocol):
    """Who asks, as far as a route needs to know."""

    @property
    def name(self) -> str: ...
    @property
    def role(self) -> str: ...


class Dependencies(Protocol):
    """What routing itself needs of the dependencies."""

    async def authenticate(self, token: str) -> Caller:
        """The bearer of ``token``. Raises Denied."""

    def observe(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one answered request."""


@dataclass(frozen=True)
class Answer(Generic[T]):
    """A result that needs more than its body: a status of its own, headers, or JSON that is already encoded (bytes)."""

    body: T | bytes
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Once:
    """An Idempotency-Key: ``key`` is the client's, ``request_hash`` the SHA-256 of what was asked with it."""

    key: str
    request_hash: str


@dataclass(frozen=True)
class Route:
    """One line of the table. ``role`` None means no token is asked for; ``status`` is the answer's when all went well."""

    method: str
    path: str  # below /api/v1
    handler: Callable[..., Awaitable[Any]]
    role: Role | None
    summary: str
    status: int = 200
    media_type: str = "application/json"

    @property
    def tag(self) -> str:
        return self.path.split("/")[1]


@dataclass(frozen=True)
class Signature:
    """What a handler's signature says: path parameters in order, the models, and the specials it wants."""

    path: tuple[str, ...]
    specials: frozenset[str]
    query: type[BaseModel] | None
    body: TypeAdapter[Any] | None
    answer: Any  # the type of the answer's body, or None


def read_signature(route: Route) -> Signature:
    """Read it; TypeError when a parameter is neither special nor in the path (a mistake of ours, at start)."""
    hints = get_type_hints(route.handler, include_extras=True)
    names = set(inspect.signature(route.handler).parameters)
    in_path = tuple(re.findall(r"{(\w+)(?::[^}]*)?}", route.path))
    if stray := names - _SPECIAL - set(in_path):
        raise TypeError(f"{route.handler.__qualname__}: {sorted(stray)} not in path {route.path}")
    answer = hints.get("return")
    if get_origin(answer) is Answer:
        (answer,) = get_args(answer)
    if answer in (type(None), Any) or (inspect.isclass(answer) and issubclass(answer, web.StreamResponse)):
        answer = None
    return Signature(
        path=in_path,
        specials=frozenset(names & _SPECIAL),
        query=hints.get("query"),
        body=TypeAdapter(hints["body"]) if "body" in hints else None,
        answer=answer,
    )


def register(app: web.Application, routes: Sequence[Route], deps: Dependencies) -> None:
    """Put every route into ``app``."""
    for route in routes:
        app.router.add_route(route.method, PREFIX + route.path, _endpoint(route, read_signature(route), deps))


def _endpoint(
    route: Route, signature: Signature, deps: Dependencies
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    template = PREFIX + route.path
    handler, specials = route.handler, signature.specials

    async def handle(request: web.Request) -> web.StreamResponse:
        arguments: dict[str, Any] = dict(request.match_info)
        if route.role is not None:
            who = await deps.authenticate(bearer(request))
            if RANK.get(who.role, 0) < RANK[route.role]:
                raise Denied(
                    f"{route.method} {request.path} needs the role {route.role}; the token of {who.name} has {who.role}",
                    authenticated=True,
                )
            if "who" in specials:
                arguments["who"] = who
        raw = b""
        wrong: list[FieldError] = []
        if signature.query is not None:
            try:
                arguments["query"] = signature.query.model_validate(_query(request))
            except ValidationError as error:
                wrong += field_errors(error, "query.")
        elif request.query_string:
            wrong += [
                FieldError(f"query.{name}", "this path takes no query parameters") for name in request.query
            ]
        if signature.body is not None:
            raw = await _read_json(request)
            try:
                arguments["body"] = signature.body.validate_json(raw or b"{}")
            except ValidationError as error:
                if error.errors(include_url=False, include_input=False)[0]["type"] == "json_invalid":
                    raise Refused(400, f"the body is not valid JSON: {_json_message(error)}") from None
                wrong += field_errors(error)
        if wrong:
            raise Invalid(wrong)
        if "deps" in specials:
            arguments["deps"] = deps
        if "request" in specials:
            arguments["request"] = request
        if "if_match" in specials:
            arguments["if_match"] = request.headers.get("If-Match")
        if "idempotency" in specials:
            arguments["idempotency"] = _once(request, raw)
        return encode(await handler(**arguments), route.status)

    async def endpoint(request: web.Request) -> web.StreamResponse:
        began = perf_counter()
        status = 499  # the client went away
        try:
            response = await handle(request)
            status = response.status
        except Exception as error:
            if isinstance(error, ConnectionResetError):
                raise
            response = problem_response(error, request)
            status = response.status
        finally:
            deps.observe(template, route.method, status, perf_counter() - began)
        return response

    return endpoint


def bearer(request: web.Request) -> str:
    """The token of the Authorization header (RFC 6750, section 2.1). Raises Denied."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise Denied(
            "send a token as 'Authorization: Bearer TOKEN'; the first start of provisiond wrote one to state.dir/admin.token"
        )
    return token.strip()


def encode(result: Any, status: int) -> web.StreamResponse:
    """A handler's result as a response."""
    if isinstance(result, web.StreamResponse):
        return result
    headers: Mapping[str, str] | None = None
    if isinstance(result, Answer):
        status, headers, result = result.status or status, result.headers, result.body
    if result is None:
        return web.Response(status=204 if status == 200 else status, headers=headers)
    body = result if isinstance(result, bytes) else to_json(result)
    return web.Response(body=body, status=status, headers=headers, content_type="application/json")


def too_deep(raw: bytes, limit: int = MAX_DEPTH) -> bool:
    """Whether JSON text nests deeper than ``limit``, found without parsing it (and without recursion)."""
    if raw.count(b"[") + raw.count(b"{") <= limit:
        return False
    brackets = _STRINGS.sub(b"", raw).translate(_ALIKE, _NOT_BRACKETS)
    for _ in range(limit):
        before = len(brackets)
        brackets = brackets.replace(b"[]", b"")
        if len(brackets) == before:
            break
    return bool(brackets)


async def _read_json(request: web.Request) -> bytes:
    if request.can_read_body:
        if request.content_type != "application/json":
            raise Refused(415, f"send application/json, not {request.content_type}")
        if request.headers.get("Content-Encoding", "identity") != "identity":
            raise Refused(415, "send the body uncompressed")
    limit = request.client_max_size
    if (request.content_length or 0) > limit:
        raise Refused(413, f"the body has {request.content_length} bytes; server.max_body allows {limit}")
    raw = await request.read()
    if too_deep(raw):
        raise Refused(400, f"the JSON is nested deeper than {MAX_DEPTH} levels, or its brackets do not match")
    return raw


def number_of(noun: str, text: str) -> int:
    """The number in a path such as /rollouts/12. Raises NotFound where it is none."""
    if not text.isdigit() or len(text) > 9:
        raise NotFound(noun, text)
    return int(text)


def _json_message(error: ValidationError) -> str:
    return error.errors(include_url=False, include_input=False)[0]["msg"].removeprefix("Invalid JSON: ")


def _query(request: web.Request) -> dict[str, Any]:
    query = request.query
    return {
        name: (values if len(values) > 1 else values[0]) for name in query if (values := query.getall(name))
    }


def _once(request: web.Request, raw: bytes) -> Once | None:
    key = request.headers.get("Idempotency-Key", "").strip()
    if not key:
        return None
    if not 1 <= len(key) <= 128 or not key.isprintable():
        raise Refused(400, "an Idempotency-Key has 1 to 128 printable characters")
    digest = hashlib.sha256(b"\0".join((request.method.encode(), request.path.encode(), raw)))
    return Once(key, digest.hexdigest())
