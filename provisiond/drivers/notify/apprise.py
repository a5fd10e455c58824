"""Notices to chat, mail and a hundred other services, by the Apprise library. Its URLs: https://github.com/caronc/apprise/wiki.

The library sends in threads of its own; a send that takes longer than the time limit counts as not taken, and its thread ends
with the library's own limits of time.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
from urllib.parse import urlsplit

import apprise

from provisiond.drivers.notify import Notice
from provisiond.errors import ConfigError, DriverUnavailable

_TYPES = {
    "info": apprise.NotifyType.INFO,
    "success": apprise.NotifyType.SUCCESS,
    "warning": apprise.NotifyType.WARNING,
    "failure": apprise.NotifyType.FAILURE,
}


class AppriseNotify:
    """Sends to one of Apprise's URLs. ``secret`` is not used: Apprise's URLs have theirs in them."""

    def __init__(self, url: str, *, secret: str = "", timeout: float = 20.0) -> None:
        self._scheme = urlsplit(url).scheme
        self._timeout = timeout
        asset = apprise.AppriseAsset(app_id="provisiond", app_desc="provisiond", secure_logging=True)
        self._apprise = apprise.Apprise(asset=asset)
        with contextlib.redirect_stderr(io.StringIO()):  # it repeats what it cannot read
            taken = self._apprise.add(url)
        if not taken:
            raise ConfigError(
                f"notify.urls: Apprise cannot read one that begins with {self._scheme or '(nothing)'}://"
            )

    async def send(self, notice: Notice) -> None:
        try:
            async with asyncio.timeout(self._timeout):
                taken = await self._apprise.async_notify(
                    title=notice.title,
                    body=f"{notice.text}\n\n[{notice.key}]",
                    notify_type=_TYPES[notice.severity],
                )
        except TimeoutError:
            raise DriverUnavailable(f"{self._scheme} took no notice in {self._timeout:g} s") from None
        except Exception as error:
            raise DriverUnavailable(f"{self._scheme} took no notice: {type(error).__name__}") from None
        if not taken:
            raise DriverUnavailable(f"{self._scheme} took no notice; the log of apprise says more")

    async def close(self) -> None:
        """Apprise holds nothing open between two notices."""
