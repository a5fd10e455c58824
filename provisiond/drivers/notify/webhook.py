"""Notices as signed JSON to an HTTP server, signed as Standard Webhooks says.

Source: https://www.standardwebhooks.com, specification 1.0: headers webhook-id, webhook-timestamp and webhook-signature, the
last "v1," and the base64 of HMAC-SHA256 over "id.timestamp.body".
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import time
from urllib.parse import urlsplit

import aiohttp

from provisiond.drivers.notify import Notice
from provisiond.errors import ConfigError, DriverRejected, DriverUnavailable

_NEVER = frozenset({400, 410, 413, 422})
"""What says that this very body will not be taken; anything else may be mended at the other side."""
_PREFIX = "whsec_"


class WebhookNotify:
    """Sends to one URL. Redirects are not followed: the address is the operator's, not the other side's."""

    def __init__(self, url: str, *, secret: str = "", timeout: float = 20.0) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigError("notify.urls: a webhook's address begins with http:// or https:// and a host")
        self._url, self._where = url, parts.hostname
        self._key = _key_of(secret)
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._session: aiohttp.ClientSession | None = None

    async def send(self, notice: Notice) -> None:
        body = json.dumps(
            {
                "key": notice.key,
                "kind": notice.kind,
                "at": notice.at.isoformat(),
                "title": notice.title,
                "text": notice.text,
                "severity": notice.severity,
                "host": notice.host,
                "data": dict(notice.data),
            }
        ).encode()
        if self._session is None:
            self._session = aiohttp.ClientSession(timeout=self._timeout, headers={"User-Agent": "provisiond"})
        headers = {"Content-Type": "application/json", **self._signed(notice.key, body)}
        try:
            async with self._session.post(
                self._url, data=body, headers=headers, allow_redirects=False
            ) as answer:
                status = answer.status
        except TimeoutError:
            raise DriverUnavailable(
                f"the webhook at {self._where} gave no answer in {self._timeout.total:g} s"
            ) from None
        except (aiohttp.ClientError, OSError) as error:
            raise DriverUnavailable(
                f"the webhook at {self._where} cannot be reached: {type(error).__name__}"
            ) from None
        if status in _NEVER:
            raise DriverRejected(f"the webhook at {self._where} refused the notice with status {status}")
        if not 200 <= status < 300:
            raise DriverUnavailable(f"the webhook at {self._where} answered with status {status}")

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _signed(self, key: str, body: bytes) -> dict[str, str]:
        at = str(int(time.time()))
        headers = {"webhook-id": key, "webhook-timestamp": at}
        if self._key:
            digest = hmac.new(self._key, f"{key}.{at}.".encode() + body, hashlib.sha256).digest()
            headers["webhook-signature"] = f"v1,{base64.b64encode(digest).decode()}"
        return headers


def _key_of(secret: str) -> bytes:
    """``whsec_`` and base64 as the specification has it, or any other text as it is."""
    if not secret.startswith(_PREFIX):
        return secret.encode()
    try:
        return base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except binascii.Error:
        raise ConfigError("notify.secret: what follows whsec_ is not base64") from None
