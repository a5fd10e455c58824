"""The typed layer under the API: what is checked before a handler runs, and how errors are answered."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from pydantic import BaseModel, ConfigDict, Field

from provisiond.api.problems import problem_middleware
from provisiond.api.routing import Answer, Once, Route, read_signature, register, too_deep
from provisiond.errors import Conflict, Denied, FieldError, Invalid


@dataclass(frozen=True)
class Somebody:
    name: str
    role: str


class Deps:
    """Tokens are role names."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, str, int]] = []

    async def authenticate(self, token: str) -> Somebody:
        if token not in ("viewer", "operator", "admin"):
            raise Denied("the token is not known")
        return Somebody("ann", token)

    def observe(self, route: str, method: str, status: int, seconds: float) -> None:
        self.seen.append((method, route, status))


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Thing(Strict):
    name: str = Field(min_length=2)
    size: int = 1


class Query(Strict):
    limit: int = Field(10, ge=1)


async def make(
    deps: Deps, who: Somebody, body: Thing, query: Query, idempotency: Once | None
) -> Answer[dict[str, Any]]:
    return Answer(
        {
            "name": body.name,
            "limit": query.limit,
            "who": who.name,
            "once": idempotency.key if idempotency else None,
        }
    )


async def look(name: str, if_match: str | None) -> dict[str, Any]:
    if name == "boom":
        raise RuntimeError("secret detail")
    if name == "taken":
        raise Conflict("thing taken exists already")
    if name == "wrong":
        raise Invalid([FieldError("a", "one"), FieldError("b.0", "two")])
    return {"name": name, "if_match": if_match}


async def drop(name: str) -> None:
    """Nothing to say."""


ROUTES = [
    Route("POST", "/things", make, "operator", "Make", status=201),
    Route("GET", "/things/{name}", look, "viewer", "Look"),
    Route("DELETE", "/things/{name}", drop, "admin", "Drop"),
]


@pytest.fixture
async def client() -> Any:
    app = web.Application(middlewares=[problem_middleware], client_max_size=2048)
    deps = Deps()
    register(app, ROUTES, deps)
    async with TestClient(TestServer(app)) as client:
        client.deps = deps  # type: ignore[attr-defined]
        yield client


def bearer(role: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {role}"}


async def test_every_wrong_field_in_one_answer(client: Any) -> None:
    """Body and query are judged together, each wrong field with its path."""
    answer = await client.post(
        "/api/v1/things?limit=0&x=1", json={"name": "a", "size": "big", "z": 1}, headers=bearer("admin")
    )
    assert answer.status == 422
    assert answer.content_type == "application/problem+json"
    problem = await answer.json()
    assert [e["field"] for e in problem["errors"]] == ["query.limit", "query.x", "name", "size", "z"]
    assert problem["errors"][4]["message"] == "unknown field"
    assert "5 fields are wrong" in problem["detail"]


async def test_typed_call(client: Any) -> None:
    """A handler gets models, principal and idempotency key; its status is the route's."""
    headers = {**bearer("operator"), "Idempotency-Key": "k1"}
    answer = await client.post("/api/v1/things?limit=3", json={"name": "ab"}, headers=headers)
    assert answer.status == 201
    assert await answer.json() == {"name": "ab", "limit": 3, "who": "ann", "once": "k1"}
    assert client.deps.seen == [("POST", "/api/v1/things", 201)]


@pytest.mark.parametrize(
    ("headers", "status"),
    [({}, 401), ({"Authorization": "Basic x"}, 401), (bearer("nobody"), 401), (bearer("viewer"), 403)],
)
async def test_no_body_is_read_from_strangers(client: Any, headers: dict[str, str], status: int) -> None:
    """Without a sufficient token the answer is 401 or 403, however wrong the body is."""
    answer = await client.post("/api/v1/things", data=b"[" * 5000, headers=headers)
    assert answer.status == status
    assert ("WWW-Authenticate" in answer.headers) == (status == 401)


@pytest.mark.parametrize(
    ("body", "content_type", "status", "said"),
    [
        (b'{"name": "' + b"a" * 3000 + b'"}', "application/json", 413, "server.max_body"),
        (b'{"name":' + b"[" * 40 + b"]" * 40 + b"}", "application/json", 400, "nested deeper"),
        (b'{"name": ', "application/json", 400, "not valid JSON"),
        (b"\xff\xfe{}", "application/json", 400, "not valid JSON"),
        (b"name=ab", "application/x-www-form-urlencoded", 415, "application/json"),
        (b"", "application/json", 422, "1 field is wrong"),
    ],
)
async def test_bodies_that_are_turned_away(
    client: Any, body: bytes, content_type: str, status: int, said: str
) -> None:
    """Size, depth and form are looked at before anything is parsed or validated."""
    headers = {**bearer("admin"), "Content-Type": content_type}
    answer = await client.post("/api/v1/things", data=body, headers=headers)
    assert (answer.status, said in (await answer.json())["detail"]) == (status, True)


async def test_compressed_bodies_are_refused(client: Any) -> None:
    """A few bytes must not become many in our memory."""
    import gzip

    headers = {**bearer("admin"), "Content-Type": "application/json", "Content-Encoding": "gzip"}
    answer = await client.post("/api/v1/things", data=gzip.compress(b"[" * 100_000), headers=headers)
    assert answer.status in (413, 415)


async def test_unforeseen_errors_tell_nothing(client: Any) -> None:
    """500 names an incident, and neither message nor traceback."""
    answer = await client.get("/api/v1/things/boom", headers=bearer("viewer"))
    text = await answer.text()
    assert answer.status == 500
    assert len(json.loads(text)["incident"]) == 12
    assert "secret" not in text and "Traceback" not in text


async def test_our_errors_have_their_status(client: Any) -> None:
    """Conflict is 409 with its sentence; Invalid is 422 with its fields."""
    conflict = await client.get("/api/v1/things/taken", headers=bearer("viewer"))
    assert (conflict.status, (await conflict.json())["detail"]) == (409, "thing taken exists already")
    wrong = await client.get("/api/v1/things/wrong", headers=bearer("viewer"))
    assert [e["field"] for e in (await wrong.json())["errors"]] == ["a", "b.0"]


async def test_unknown_paths_and_methods_are_problems_too(client: Any) -> None:
    """404 and 405 of the router are problem+json as well; 405 says what is allowed."""
    nothing = await client.get("/api/v1/nothing", headers=bearer("viewer"))
    assert (nothing.status, nothing.content_type) == (404, "application/problem+json")
    method = await client.put("/api/v1/things", headers=bearer("viewer"))
    assert (method.status, method.content_type, method.headers["Allow"]) == (
        405,
        "application/problem+json",
        "POST",
    )


async def test_query_where_none_is_taken(client: Any) -> None:
    """A mistyped filter is an error, not a silent list of everything."""
    answer = await client.get("/api/v1/things/ab?stat=x", headers=bearer("viewer"))
    assert (answer.status, (await answer.json())["errors"][0]["field"]) == (422, "query.stat")


async def test_none_is_204(client: Any) -> None:
    """A handler without an answer ends in 204."""
    answer = await client.delete("/api/v1/things/ab", headers=bearer("admin"))
    assert (answer.status, await answer.read()) == (204, b"")


@pytest.mark.parametrize(
    ("text", "deep"),
    [
        (b"[" * 32 + b"]" * 32, False),
        (b"[" * 33 + b"]" * 33, True),
        (b'{"a":' * 33 + b"1" + b"}" * 33, True),
        (b'"' + b"[" * 99 + b'"', False),
        (b'["\\"' + b"[" * 99 + b'"]', False),
        (b"[" + b"[],{}," * 5000 + b"1]", False),
        (b"[" * 100_000, True),
        (b"[{" * 20 + b"}]" * 20, True),
    ],
)
def test_depth_without_parsing(text: bytes, deep: bool) -> None:
    """Brackets inside strings do not count, siblings do not add up, and nothing recurses."""
    assert too_deep(text) is deep


def test_a_parameter_from_nowhere_is_found_at_start() -> None:
    """A handler whose parameter is neither special nor in the path is a mistake that shows when the app is made."""

    async def handler(nmae: str) -> None: ...

    with pytest.raises(TypeError, match="nmae"):
        read_signature(Route("GET", "/things/{name}", handler, "viewer", ""))
