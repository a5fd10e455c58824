"""Errors as answers: one error of ours becomes one problem+json document (RFC 9457) with every wrong field in it.

The client never sees a traceback: an error nobody foresaw is logged under an incident id, and the answer names that id.
"""

from __future__ import annotations

import uuid
from http import HTTPStatus
from typing import Any

import structlog
from aiohttp import web
from aiohttp.typedefs import Handler
from pydantic import BaseModel, Field, ValidationError
from pydantic_core import to_json

from provisiond.errors import (
    Conflict,
    Denied,
    DriverRejected,
    DriverUnavailable,
    FieldError,
    Invalid,
    NotFound,
    ProvisiondError,
    RenderError,
    StaleWrite,
    Unsupported,
)
from provisiond.inventory.fields import wrong_places
from provisiond.media.fetch import MediaError

log = structlog.get_logger(__name__)
CONTENT_TYPE = "application/problem+json"

_STATUS: list[tuple[type[ProvisiondError], int]] = [
    (Invalid, 422),
    (NotFound, 404),
    (Conflict, 409),
    (StaleWrite, 409),
    (RenderError, 422),
    (MediaError, 422),
    (Unsupported, 422),
    (DriverRejected, 502),
    (DriverUnavailable, 503),
]


class WrongField(BaseModel):
    """One wrong field: ``field`` is a dotted path such as ``interfaces.0.mac``."""

    field: str
    message: str


class Problem(BaseModel):
    """What every error answer looks like (RFC 9457, section 3.1)."""

    type: str = "about:blank"
    title: str = Field(description="The HTTP status in words.")
    status: int
    detail: str = Field(description="What happened and what to do about it, in a sentence.")
    instance: str | None = Field(None, description="The path that was asked for.")
    errors: list[WrongField] = Field([], description="Every wrong field of the request.")
    template: str | None = Field(
        None, description="The template that cannot be rendered (status 422 of renderings)."
    )
    line: int | None = Field(None, description="Its line.")
    key: str | None = Field(None, description="What is missing or wrong, such as parameters.site.")
    incident: str | None = Field(None, description="Look for this id in the daemon's log (status 500 only).")


class Refused(ProvisiondError):
    """A request turned away for its form (size, depth, media type, precondition); ``status`` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


def problem_response(error: BaseException, request: web.Request) -> web.Response:
    """The answer for ``error``; anything but our own errors and aiohttp's is logged as an incident."""
    headers: dict[str, str] = {}
    errors: list[FieldError] = []
    incident = None
    if isinstance(error, web.HTTPException):
        status, detail = error.status, _http_detail(error, request)
        if "Allow" in error.headers:
            headers["Allow"] = error.headers["Allow"]
    elif isinstance(error, Refused):
        status, detail = error.status, str(error)
    elif isinstance(error, Denied):
        status, detail = (403 if error.authenticated else 401), str(error)
        if status == 401:
            headers["WWW-Authenticate"] = 'Bearer realm="provisiond"'
    elif isinstance(error, ProvisiondError):
        status, detail = next((s for kind, s in _STATUS if isinstance(error, kind)), 500), str(error)
        if isinstance(error, Invalid):
            errors = error.fields
            detail = "nothing was changed: " + (
                "1 field is wrong" if len(errors) == 1 else f"{len(errors)} fields are wrong"
            )
    else:
        status, incident = 500, uuid.uuid4().hex[:12]
        detail = f"an unforeseen error; look for incident {incident} in the daemon's log"
        log.error("api.incident", incident=incident, method=request.method, path=request.path, exc_info=error)
    body: dict[str, Any] = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
    }
    body["instance"] = request.path
    if errors:
        body["errors"] = [{"field": e.field, "message": e.message} for e in errors]
    if isinstance(error, RenderError):
        body |= {"template": error.template, "line": error.line, "key": error.key}
    if incident:
        body["incident"] = incident
    return web.Response(body=to_json(body), status=status, content_type=CONTENT_TYPE, headers=headers)


@web.middleware
async def problem_middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
    """What the router itself refuses (unknown path, wrong method) becomes a problem document too."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return problem_response(error, request)


def field_errors(error: ValidationError, prefix: str = "") -> list[FieldError]:
    """Pydantic's errors as ours, in sentences and without the offending input (it may be a secret)."""
    found = []
    for one in error.errors(include_url=False, include_input=False):
        path = prefix + ".".join(
            str(part) for part in one["loc"] if not str(part).startswith(("function-", "~"))
        )
        for below, said in wrong_places(one) or [("", _say(one["type"], one["msg"]))]:
            found.append(FieldError(".".join(filter(None, (path.rstrip("."), below))) or "body", said))
    return found


def _say(kind: str, message: str) -> str:
    if kind == "missing":
        return "is required"
    if kind == "extra_forbidden":
        return "unknown field"
    text = message.removeprefix("Value error, ").removeprefix("Assertion failed, ")
    return text[:1].lower() + text[1:] if text.startswith(("Input ", "String ", "List ")) else text


def _http_detail(error: web.HTTPException, request: web.Request) -> str:
    if error.status == 404:
        return f"there is nothing at {request.path}; /api/v1/docs lists every path"
    if error.status == 405:
        return f"{request.path} does not take {request.method}"
    if error.status == 413:
        return "the request body is larger than server.max_body allows"
    return error.reason or error.text or ""
