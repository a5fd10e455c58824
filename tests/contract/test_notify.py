"""The notify contract against real servers on loopback: an HTTP server for the webhook, an SMTP server for Apprise's mail."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiosmtpd.smtp import SMTP

from provisiond.drivers import load
from provisiond.drivers.notify import Notice
from provisiond.errors import ConfigError, DriverRejected, DriverUnavailable

AT = datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)
NOTICE = Notice(
    key="4711", kind="rollout.report", at=AT, title="provisiond: rollout 3 goes back", text="success>=95% failed\nhost web01",
    severity="failure", host="", data={"rollout": 3},
)  # fmt: skip


@dataclass
class HttpServer:
    """What came in, and with which status it is answered."""

    url: str = ""
    status: int = 204
    came: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    location: str = ""


@asynccontextmanager
async def http_server() -> AsyncIterator[HttpServer]:
    server = HttpServer()

    async def take(request: web.Request) -> web.Response:
        server.came.append((dict(request.headers), await request.read()))
        return web.Response(
            status=server.status, headers={"Location": server.location} if server.location else {}
        )

    app = web.Application()
    app.router.add_post("/hook", take)
    app.router.add_post("/elsewhere", take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    server.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    try:
        yield server
    finally:
        await runner.cleanup()


class Mailbox:
    """Takes every mail, or refuses with ``answer``."""

    def __init__(self) -> None:
        self.mails: list[Message] = []
        self.answer = "250 taken"

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:
        if self.answer.startswith("2"):
            self.mails.append(message_from_bytes(envelope.content))
        return self.answer


@asynccontextmanager
async def smtp_server() -> AsyncIterator[tuple[Mailbox, int]]:
    """A mailbox and the port it is behind. Apprise speaks to it from a thread of its own."""
    mailbox = Mailbox()
    server = await asyncio.get_running_loop().create_server(lambda: SMTP(mailbox), "127.0.0.1", 0)
    try:
        yield mailbox, server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def test_a_webhook_is_signed() -> None:
    """The body is the notice as JSON, and the signature is that of Standard Webhooks, over id, time and body."""
    secret = "whsec_" + base64.b64encode(b"k" * 24).decode()
    async with http_server() as server:
        driver = load("notify", "webhook")(server.url, secret=secret, timeout=30)
        await driver.send(NOTICE)
        await driver.send(NOTICE)
        await driver.close()
    assert [headers["webhook-id"] for headers, _ in server.came] == ["4711", "4711"]
    headers, body = server.came[0]
    told = json.loads(body)
    assert (told["key"], told["kind"], told["severity"], told["data"]) == (
        "4711",
        "rollout.report",
        "failure",
        {"rollout": 3},
    )
    signed = f"4711.{headers['webhook-timestamp']}.".encode() + body
    expected = base64.b64encode(hmac.new(b"k" * 24, signed, hashlib.sha256).digest()).decode()
    assert headers["webhook-signature"] == f"v1,{expected}"


@pytest.mark.parametrize("status", [301, 401, 404, 408, 429, 500, 503])
async def test_a_webhook_that_may_take_it_later(status: int) -> None:
    """Anything that somebody may mend at the other side is tried again; a redirect is not followed."""
    async with http_server() as server:
        server.status, server.location = status, "/elsewhere"
        driver = load("notify", "webhook")(server.url, timeout=30)
        with pytest.raises(DriverUnavailable, match=str(status)) as caught:
            await driver.send(NOTICE)
        await driver.close()
    assert len(server.came) == 1
    assert "/hook" not in str(caught.value), "the address is a secret"


@pytest.mark.parametrize("status", [400, 410, 413, 422])
async def test_a_webhook_that_never_takes_it(status: int) -> None:
    """What says that this body will not be taken ends the tries."""
    async with http_server() as server:
        server.status = status
        driver = load("notify", "webhook")(server.url, timeout=30)
        with pytest.raises(DriverRejected):
            await driver.send(NOTICE)
        await driver.close()


async def test_a_mail_by_apprise() -> None:
    """Apprise hands the mail to the SMTP server; the notice's key is in it, so that a repetition is known as one."""
    async with smtp_server() as (mailbox, port):
        url = f"mailto://127.0.0.1:{port}?from=provisiond@example.org&to=ops@example.org&mode=insecure"
        driver = load("notify", "apprise")(url, timeout=60)
        await driver.send(NOTICE)
        await driver.close()
    [mail] = mailbox.mails
    assert "rollout 3 goes back" in str(mail["Subject"]) and "ops@example.org" in str(mail["To"])
    parts = [p.get_payload(decode=True) for p in mail.walk() if not p.is_multipart()]
    body = b"".join(part for part in parts if isinstance(part, bytes)).decode()
    assert "success>=95% failed" in body and "[4711]" in body


async def test_a_mail_server_that_refuses(caplog: pytest.LogCaptureFixture) -> None:
    """It is tried again later, and no log has the password of the address."""
    caplog.set_level(logging.DEBUG)
    async with smtp_server() as (mailbox, port):
        mailbox.answer = "451 not now"
        url = f"mailto://eva:s3cretword@127.0.0.1:{port}?from=a@example.org&to=ops@example.org&mode=insecure"
        driver = load("notify", "apprise")(url, timeout=60)
        with pytest.raises(DriverUnavailable) as caught:
            await driver.send(NOTICE)
    assert "s3cretword" not in str(caught.value) + caplog.text
    assert mailbox.mails == []


async def test_nobody_there() -> None:
    """A closed port is unavailable for both, in a sentence without the address."""
    async with http_server() as server:
        gone = server.url
    port = gone.rpartition(":")[2].partition("/")[0]
    for name, url in (
        ("webhook", gone),
        ("apprise", f"mailto://127.0.0.1:{port}?from=a@example.org&to=b@example.org&mode=insecure"),
    ):
        driver = load("notify", name)(url, timeout=60)
        with pytest.raises(DriverUnavailable) as caught:
            await driver.send(NOTICE)
        assert port not in str(caught.value)
        await driver.close()


@pytest.mark.parametrize(
    ("driver", "url", "secret"),
    [
        ("webhook", "ftp://user:s3cretword@h/x", ""),
        ("webhook", "no-url-s3cretword", ""),
        ("webhook", "https://h/x", "whsec_s3cretword!"),
        ("apprise", "nosuch://s3cretword@h", ""),
        ("fake", "http://s3cretword", ""),
    ],
)
def test_a_wrong_address_is_a_wrong_setting(driver: str, url: str, secret: str) -> None:
    """Named, but never shown."""
    with pytest.raises(ConfigError, match=r"^notify\.(urls|secret): ") as caught:
        load("notify", driver)(url, secret=secret)
    assert "s3cretword" not in str(caught.value)


async def test_the_fake_outlives_a_kill(tmp_path: Path) -> None:
    """What it was told is a line in a file; errors that were asked for come first."""
    driver = load("notify", "fake")(f"fake://{tmp_path}")
    driver.fail_next.append(DriverUnavailable("busy"))
    with pytest.raises(DriverUnavailable):
        await driver.send(NOTICE)
    await driver.send(NOTICE)
    [line] = (tmp_path / "notices.jsonl").read_text().splitlines()
    assert json.loads(line)["key"] == "4711" and driver.sent == [NOTICE]
