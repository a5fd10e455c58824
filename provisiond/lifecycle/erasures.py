"""Records of erased disks, and the certificate made from them: signed with the daemon's key, so that a changed one is found out.

The category of each record is that of NIST SP 800-88 Rev. 1, section 2.5 and appendix A: Purge for erasures by the disk itself that
reach all it holds, Clear for what makes data unreadable over the disk's usual interface. No category: it was not sanitized.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Mapping
from typing import Any

from sqlalchemy import or_, select

from provisiond.errors import NotFound
from provisiond.inventory.hardware_tables import Erasure
from provisiond.inventory.secrets import SecretBox
from provisiond.inventory.store import Store
from provisiond.inventory.tables import Host, table, utcnow

PURPOSE = "erasure certificate"
PURGE, CLEAR, NONE = "Purge", "Clear", "none"
_CATEGORY: Mapping[str, str] = {
    "nvme-format": PURGE,
    "nvme-crypto-erase": PURGE,
    "nvme-sanitize-block": PURGE,
    "nvme-sanitize-pattern": PURGE,
    "nvme-sanitize-crypto": PURGE,
    "ata-enhanced-erase": PURGE,
    "ata-secure-erase": CLEAR,
    "discard": CLEAR,
    "overwrite": CLEAR,
    "metadata": NONE,
}
_erasure, _host = table(Erasure), table(Host)
_FIELDS = (
    "id", "host_id", "host_name", "host_serial", "disk_name", "disk_model", "disk_serial", "disk_wwn", "disk_size", "method",
    "started_at", "ended_at", "verified", "message", "actor", "task_id",
)  # fmt: skip
MAX_RECORDS = 10_000


def category(method: str, *, verified: bool) -> str:
    """Purge, Clear or none, of a method such as nvme-format or ata-secure-erase+overwrite."""
    if not verified:
        return NONE
    found = {_CATEGORY.get(part, NONE) for part in method.split("+")}
    return PURGE if PURGE in found else CLEAR if CLEAR in found else NONE


async def list_erasures(store: Store, host: str | None = None, limit: int = 1000) -> list[dict[str, Any]]:
    """The records, newest first, with their ``category``; of one host by name or id, also of one that is gone."""
    statement = select(*(_erasure.c[name] for name in _FIELDS)).limit(min(limit, MAX_RECORDS))
    async with store.connect() as connection:
        if host is not None:
            living = (await connection.execute(select(_host.c.id).where(_host.c.name == host))).scalar()
            mine = (
                _erasure.c.host_id == living
                if living
                else or_(_erasure.c.host_id == host, _erasure.c.host_name == host)
            )
            statement = statement.where(mine)
        rows = (
            await connection.execute(statement.order_by(_erasure.c.started_at.desc(), _erasure.c.id))
        ).all()
    return [{**row._mapping, "category": category(row.method, verified=row.verified)} for row in rows]


async def certificate(store: Store, box: SecretBox, host: str) -> dict[str, Any]:
    """The certificate of a host's erasures, oldest first. Raises NotFound where there are none.

    {"version", "issued_at", "issuer", "host": {...}, "erasures": [...], "digest", "signature"}: ``digest`` is SHA-256 of all else as
    canonical JSON, ``signature`` HMAC-SHA-256 of that text with the daemon's key.
    """
    records = await list_erasures(store, host, MAX_RECORDS)
    if not records:
        raise NotFound("erasure", host)
    newest = records[0]
    text: dict[str, Any] = {
        "version": 1,
        "issuer": "provisiond",
        "issued_at": utcnow().isoformat(timespec="seconds"),
        "host": {"name": newest["host_name"], "id": newest["host_id"], "serial": newest["host_serial"]},
        "standard": "NIST SP 800-88 Rev. 1",
        "erasures": [_shown(record) for record in reversed(records)],
    }
    canonical = _canonical(text)
    return {
        **text,
        "digest": f"sha256:{hashlib.sha256(canonical).hexdigest()}",
        "signature": f"hmac-sha256:{_sign(box.derived(PURPOSE)[0], canonical)}",
    }


def verify(box: SecretBox, given: Mapping[str, Any]) -> str:
    """Why ``given`` is no certificate of this daemon as it was issued; '' when it is one."""
    text = {key: value for key, value in given.items() if key not in ("digest", "signature")}
    if text.get("version") != 1 or "erasures" not in text or "signature" not in given:
        return "this is no certificate of version 1: its version, erasures or signature is missing"
    canonical = _canonical(text)
    if given.get("digest") != f"sha256:{hashlib.sha256(canonical).hexdigest()}":
        return "its content is not what its digest was made of: it was changed"
    signed = str(given["signature"])
    if not any(
        hmac.compare_digest(signed, f"hmac-sha256:{_sign(key, canonical)}") for key in box.derived(PURPOSE)
    ):
        return "this daemon's keys did not sign it: it was changed together with its digest, or another daemon made it"
    return ""


# --- inner -----------------------------------------------------------------------------------------------


def _shown(record: Mapping[str, Any]) -> dict[str, Any]:
    disk = {key: record[f"disk_{key}"] for key in ("name", "model", "serial", "wwn", "size")}
    own = {key: record[key] for key in ("id", "method", "category", "verified", "message", "actor")}
    times = {key: record[key].isoformat(timespec="milliseconds") for key in ("started_at", "ended_at")}
    return {**own, **times, "task": record["task_id"], "disk": disk}


def _canonical(text: Mapping[str, Any]) -> bytes:
    return json.dumps(text, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _sign(key: bytes, text: bytes) -> str:
    return hmac.new(key, text, hashlib.sha256).hexdigest()
