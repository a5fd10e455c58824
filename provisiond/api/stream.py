"""The history as server-sent events (WHATWG HTML, section 9.2): resumable, with heartbeats, none lost and none doubled."""

from __future__ import annotations

from aiohttp import web

from provisiond.api.problems import Refused
from provisiond.inventory.shapes import EventView
from provisiond.observe.follow import History

BEAT = 15.0  # seconds of silence after which a comment is sent, so that both sides notice a dead connection


def resume_point(request: web.Request, after: int | None) -> int | None:
    """Where to go on: the Last-Event-ID header wins over ``?after=``. None: from now on."""
    header = request.headers.get("Last-Event-ID", "").strip()
    if not header:
        return after
    if not header.isdigit() or len(header) > 18:
        raise Refused(400, "Last-Event-ID is the number of the last event you have seen")
    return int(header)


async def send_events(
    request: web.Request, history: History, *, after: int | None, host_id: str | None = None
) -> web.StreamResponse:
    """Stream events after ``after`` until the client goes away or the daemon stops."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
    if after is None:  # settled before the head goes out, so that nothing asked for after it is missed
        after = await history.now()
    batches = history.watch(after=after, host_id=host_id, beat=BEAT)
    await response.prepare(request)
    try:
        await response.write(b"retry: 1000\n\n")
        async for events in batches:
            if not events:
                await response.write(b": still here\n\n")
            else:
                await response.write(b"".join(_frame(event) for event in events))
    except (ConnectionResetError, ConnectionAbortedError):
        pass
    finally:
        await batches.aclose()  # type: ignore[attr-defined]
    return response


def _frame(event: EventView) -> bytes:
    return f"id: {event.id}\nevent: {event.kind}\ndata: {event.model_dump_json()}\n\n".encode()
