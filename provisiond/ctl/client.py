"""The API as provisionctl uses it: JSON in and out, problems as errors, events as they come."""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx

from provisiond.ctl.config import Target

API = "/api/v1"


class Unreachable(Exception):
    """The daemon cannot be reached, or what answers is not provisiond. Exit code 3."""


@dataclass
class ApiProblem(Exception):
    """The daemon said no. ``fields`` are (dotted path, message) of every wrong field. Exit code 4 for 401 and 403, else 1."""

    status: int
    detail: str
    fields: list[tuple[str, str]]

    def __str__(self) -> str:
        return self.detail

    @property
    def denied(self) -> bool:
        return self.status in (401, 403)


@dataclass(frozen=True)
class ServerEvent:
    id: int
    kind: str
    data: dict[str, Any]


class Client:
    """One connection to the daemon. Use as a context manager, or close it."""

    def __init__(self, target: Target, *, timeout: float = 60.0) -> None:
        self.target = target
        self._timeout = timeout
        transport: httpx.HTTPTransport | None = None
        base = target.url
        if target.url.startswith("unix://"):
            transport = httpx.HTTPTransport(uds=target.url.removeprefix("unix://"))
            base = "http://provisiond"
        self._http = httpx.Client(
            base_url=base,
            transport=transport,
            verify=target.ca or True,
            timeout=timeout,
            headers={"Authorization": f"Bearer {target.token}", "User-Agent": "provisionctl"},
            trust_env=False,
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    def get(self, path: str, *, timeout: float | None = None, **query: Any) -> Any:
        return self._send("GET", path, query=query, timeout=timeout)

    def post(self, path: str, body: Any, *, once: bool = False, timeout: float | None = None) -> Any:
        """``once``: send an Idempotency-Key, and try again when the connection breaks: it is done once at most."""
        return self._send("POST", path, body=body, key=uuid.uuid4().hex if once else None, timeout=timeout)

    def patch(self, path: str, body: Any) -> Any:
        return self._send("PATCH", path, body=body)

    def put(self, path: str, body: Any) -> Any:
        return self._send("PUT", path, body=body)

    def delete(self, path: str) -> None:
        self._send("DELETE", path)

    def every(self, path: str, **query: Any) -> list[Any]:
        """All items of a paged list."""
        items: list[Any] = []
        cursor = None
        while True:
            page = self.get(path, **query, cursor=cursor)
            items += page["items"]
            cursor = page.get("next")
            if not cursor:
                return items

    def text(self, path: str, *, follow: bool = False, **query: Any) -> Iterator[bytes]:
        """A text answer in pieces, as they come."""
        timeout = httpx.Timeout(self._timeout, read=None if follow else self._timeout)
        try:
            with self._http.stream("GET", API + path, params=_given(query), timeout=timeout) as response:
                if response.is_error:
                    response.read()
                    raise _problem(response)
                yield from response.iter_raw()
        except httpx.TransportError as error:
            raise self._unreachable(error) from None

    def events(self, path: str, *, after: int | None = None) -> Iterator[ServerEvent | None]:
        """Events for ever, resumed where a connection breaks. None stands for the connection being there, or a heartbeat."""
        failures = 0
        while True:
            try:
                for event in self._events_once(path, after):
                    failures = 0
                    if event is not None:
                        after = event.id
                    yield event
            except httpx.TransportError as error:
                failures += 1
                if failures > 8:
                    raise self._unreachable(error) from None
            time.sleep(min(0.2 * 2**failures, 5.0) * random.uniform(0.5, 1.0))  # noqa: S311

    def _events_once(self, path: str, after: int | None) -> Iterator[ServerEvent | None]:
        headers = {"Accept": "text/event-stream"}
        if after is not None:
            headers["Last-Event-ID"] = str(after)
        timeout = httpx.Timeout(self._timeout, read=45.0)  # three heartbeats
        with self._http.stream("GET", API + path, headers=headers, timeout=timeout) as response:
            if response.is_error:
                response.read()
                raise _problem(response)
            yield None
            number, kind, data = 0, "", ""
            for line in response.iter_lines():
                name, _, value = line.partition(": ")
                if line == "":
                    if data:
                        yield ServerEvent(number, kind, json.loads(data))
                    number, kind, data = 0, "", ""
                elif name == "id":
                    number = int(value)
                elif name == "event":
                    kind = value
                elif name == "data":
                    data = value
                elif line.startswith(":"):
                    yield None

    def _send(
        self,
        method: str,
        path: str,
        *,
        query: dict[str, Any] | None = None,
        body: Any = None,
        key: str | None = None,
        timeout: float | None = None,
    ) -> Any:
        headers = {"Idempotency-Key": key} if key else {}
        tries = 4 if key or method == "GET" else 1
        for attempt in range(tries):
            try:
                response = self._http.request(
                    method, API + path, params=_given(query or {}), json=body, headers=headers,
                    timeout=timeout or self._timeout,
                )  # fmt: skip
                break
            except httpx.TransportError as error:
                broke_off = isinstance(error, httpx.ReadError | httpx.RemoteProtocolError | httpx.WriteError)
                if not broke_off or attempt == tries - 1:
                    raise self._unreachable(error) from None
                time.sleep(0.3 * 2**attempt)
        if response.is_error:
            raise _problem(response)
        if response.status_code == 204 or not response.content:
            return None
        try:
            return response.json()
        except ValueError:
            raise Unreachable(
                f"{self.target.url} answers, but not like provisiond; check PROVISIOND_URL"
            ) from None

    def _unreachable(self, error: Exception) -> Unreachable:
        reason = str(error) or type(error).__name__
        return Unreachable(
            f"cannot reach provisiond at {self.target.url}: {reason}; is it running, and is PROVISIOND_URL right?"
        )


def place(*parts: str) -> str:
    """A path of the API from its parts, each quoted."""
    return "/" + "/".join(quote(part, safe="") for part in parts)


def _given(query: dict[str, Any]) -> dict[str, Any]:
    return {
        name: (str(value).lower() if isinstance(value, bool) else value)
        for name, value in query.items()
        if value is not None
    }


def _problem(response: httpx.Response) -> ApiProblem | Unreachable:
    try:
        body = response.json()
        fields = [(str(e["field"]), str(e["message"])) for e in body.get("errors", [])]
        return ApiProblem(response.status_code, str(body["detail"]), fields)
    except (ValueError, KeyError, TypeError, AttributeError):
        return Unreachable(
            f"{response.request.url.host} answered {response.status_code}, but not like provisiond; check PROVISIOND_URL"
        )
