"""What machines report: progress, built, failed and phone-home of one build. Each is told to lifecycle.signals and is idempotent.

Bodies are forms (curl --data, busybox wget, cloud-init's phone_home) or JSON objects with the same names.
"""

from __future__ import annotations

import json
import re
from urllib.parse import parse_qs

import structlog
from aiohttp import web

from provisiond.boot.machines import BootWorld
from provisiond.boot.paths import without_token
from provisiond.inventory.masking import cut_out
from provisiond.inventory.resolve import ResolvedHost
from provisiond.lifecycle import signals

log = structlog.get_logger(__name__)

MAX_BODY = 1 << 20
MAX_FIELDS = 64
LOG_TAIL = 64 * 1024
_HOST_KEY = re.compile(
    r"(ssh-ed25519|ssh-rsa|ecdsa-sha2-nistp(?:256|384|521)) ([A-Za-z0-9+/]{40,4096}={0,2})(?:\s.*)?",
    re.DOTALL,
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f]")

Fields = dict[str, str | list[str]]


async def fields(request: web.Request) -> Fields:
    """The fields of the body. Raises HTTPBadRequest, HTTPRequestEntityTooLarge (1 MiB)."""
    body = (await request.read()).decode("utf-8", "replace")
    if "json" in request.content_type:
        try:
            value = json.loads(body or "{}")
        except (ValueError, RecursionError):
            raise web.HTTPBadRequest(text="the body is not JSON\n") from None
        if not isinstance(value, dict):
            raise web.HTTPBadRequest(text="the body is not a JSON object\n")
        return {
            str(k): [str(i) for i in v] if isinstance(v, list) else str(v)
            for k, v in list(value.items())[:MAX_FIELDS]
        }
    try:
        return {
            k: v[-1] for k, v in parse_qs(body, keep_blank_values=True, max_num_fields=MAX_FIELDS).items()
        }
    except ValueError:
        raise web.HTTPBadRequest(text=f"the form has more than {MAX_FIELDS} fields\n") from None


def text(given: Fields, name: str, limit: int) -> str:
    """One field as text without control characters (but line breaks and tabs) and boot tokens, its last ``limit`` characters."""
    value = given.get(name, "")
    return clean("\n".join(value) if isinstance(value, list) else value, limit)


def clean(told: str, limit: int) -> str:
    """What a machine told, without control characters (but line breaks and tabs), boot tokens and tickets; its last ``limit`` characters."""
    shown = _CONTROL.sub("?", told.replace("\r\n", "\n").replace("\x00", ""))
    # installers log their kernel's arguments and the commands they run
    return without_token(shown)[-limit:]


def without_secrets(given: Fields, host: ResolvedHost) -> Fields:
    """The fields without the host's own secret parameters: an installer's log may hold the passphrase of its disks."""
    return {
        name: [cut_out(v, host.parameters) for v in value]
        if isinstance(value, list)
        else cut_out(value, host.parameters)
        for name, value in given.items()
    }


def host_keys(given: Fields) -> list[str]:
    """The SSH public keys of a phone-home, as `type base64`; anything else in their fields is dropped.

    Forms as cloud-init posts them (pub_key_ed25519 ..., "N/A" where there is none), JSON as `host_keys`.
    """
    listed = given.get("host_keys", [])
    offered = [str(v) for name, v in sorted(given.items()) if name.startswith("pub_key_")]
    offered += listed if isinstance(listed, list) else listed.splitlines()
    found = (_HOST_KEY.fullmatch(key.strip()) for key in offered)
    return list(dict.fromkeys(f"{key[1]} {key[2]}" for key in found if key))


async def progress(world: BootWorld, deployment_id: str, given: Fields) -> None:
    """``percent`` 0 to 100 and ``text``. Raises HTTPBadRequest when percent is no number."""
    percent = text(given, "percent", 8)
    if not percent.strip().isdecimal():
        raise web.HTTPBadRequest(text="percent must be a whole number from 0 to 100\n")
    line = " ".join(text(given, "text", 256).split())
    await signals.progress(world.store, deployment_id, int(percent), line)


async def built(world: BootWorld, deployment_id: str, given: Fields) -> None:
    """The build is on the disk."""
    await signals.built(world.store, deployment_id)


async def failed(world: BootWorld, deployment_id: str, given: Fields) -> None:
    """``message`` and the tail of a ``log``, of which 64 KiB are kept."""
    message = (
        " ".join(text(given, "message", 2048).split()) or "the machine reported a failure without a message"
    )
    tail = text(given, "log", LOG_TAIL).encode()[-LOG_TAIL:].decode("utf-8", "ignore")
    await signals.failed(world.store, deployment_id, message, tail)


async def phone_home(world: BootWorld, deployment_id: str, given: Fields) -> None:
    """The first boot is through; the machine's SSH host keys come with it."""
    keys = host_keys(given)
    if not keys:
        log.warning("boot.phone_home_without_keys", deployment=deployment_id, fields=sorted(given)[:20])
    await signals.phone_home(world.store, deployment_id, keys)


CALLBACKS = {"progress": progress, "built": built, "failed": failed, "phone-home": phone_home}
"""By the last part of their path."""
