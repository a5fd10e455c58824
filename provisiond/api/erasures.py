"""What the ramdisk did to a host's hardware: disks erased, with their certificate, and results of hardware tests."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field
from sqlalchemy import select

from provisiond.api.deps import ApiDeps
from provisiond.api.hosts import Page
from provisiond.api.routing import Route
from provisiond.inventory import hosts
from provisiond.inventory.hardware_tables import HardwareTest, Task
from provisiond.inventory.shapes import Request, View
from provisiond.inventory.tables import table
from provisiond.lifecycle import erasures

_test, _task = table(HardwareTest), table(Task)
_TESTS = select(
    *(_test.c[name] for name in ("name", "at", "verdict", "seconds", "output", "task_id")), _task.c.actor
).select_from(_test.outerjoin(_task, _task.c.id == _test.c.task_id))


class ErasuresQuery(Request):
    """``host`` is a name or id, also of a host that is gone."""

    host: str | None = Field(None, max_length=63)
    limit: int = Field(1000, ge=1, le=erasures.MAX_RECORDS)


class ErasureView(View):
    """One disk, erased by ``method`` (or, where not ``verified``, it was tried). ``category`` as of NIST SP 800-88: Purge, Clear, none."""

    id: str
    host_id: str
    host_name: str
    host_serial: str | None
    disk_name: str
    disk_model: str
    disk_serial: str
    disk_wwn: str
    disk_size: int
    method: str
    category: str
    verified: bool
    message: str
    started_at: datetime
    ended_at: datetime
    actor: str


class CertificateView(View):
    """Of all erasures of a host. ``digest`` is SHA-256 of the rest as canonical JSON (sorted keys, no blanks), ``signature`` its HMAC with
    the daemon's key."""

    version: int
    issuer: str
    issued_at: str
    host: dict[str, Any]
    standard: str
    erasures: list[dict[str, Any]]
    digest: str
    signature: str


class CertificateBody(Request):
    certificate: dict[str, Any]


class VerdictView(View):
    """``why`` says what is wrong with a certificate that is not ``valid``."""

    valid: bool
    why: str


class TestView(View):
    """The result of one hardware test: ``verdict`` pass, fail or degraded; ``output`` its end, at most 64 KiB."""

    __test__ = False

    name: str
    at: datetime
    verdict: str
    seconds: float
    output: str
    task_id: str
    actor: str | None


class TestsQuery(Request):
    """Newest first."""

    __test__ = False

    limit: int = Field(100, ge=1, le=1000)


async def list_erasures(deps: ApiDeps, query: ErasuresQuery) -> Page[ErasureView]:
    """Newest first."""
    found = await erasures.list_erasures(deps.store, query.host, query.limit)
    return Page(items=[ErasureView(**{k: v for k, v in one.items() if k != "task_id"}) for one in found])


async def show_certificate(deps: ApiDeps, name: str) -> CertificateView:
    """By the host's name or id, also of one that was deleted."""
    return CertificateView(**await erasures.certificate(deps.store, deps.box, name))


async def verify_certificate(deps: ApiDeps, body: CertificateBody) -> VerdictView:
    """Whether this daemon issued it and nobody changed it since."""
    why = erasures.verify(deps.box, body.certificate)
    return VerdictView(valid=not why, why=why)


async def list_tests(deps: ApiDeps, name: str, query: TestsQuery) -> Page[TestView]:
    """Results of the hardware tests of a host."""
    host = await hosts.get_host(deps.store, name)
    found = _TESTS.where(_test.c.host_id == host.id).order_by(_test.c.id.desc()).limit(query.limit)
    async with deps.store.connect() as connection:
        rows = (await connection.execute(found)).all()
    return Page(items=[TestView(**row._mapping) for row in rows])


ROUTES: list[Route] = [
    Route("GET", "/erasures", list_erasures, "viewer", "Records of erased disks"),
    Route("POST", "/erasures/verify", verify_certificate, "viewer", "Check a certificate of erasure"),
    Route(
        "GET", "/hosts/{name}/certificate", show_certificate, "viewer", "The certificate of a host's erasures"
    ),
    Route("GET", "/hosts/{name}/tests", list_tests, "viewer", "Results of a host's hardware tests"),
]
