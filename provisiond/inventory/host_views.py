"""How hosts are read for showing: one statement for a host, one for a list, without loading objects on the way."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from pydantic import TypeAdapter
from sqlalchemy import and_, bindparam, or_, select

from provisiond.inventory.hardware_tables import HardwareProfile
from provisiond.inventory.release_tables import Release
from provisiond.inventory.shapes import BmcView, DeploymentView, HostSummary, HostView, InterfaceView, bmc_url
from provisiond.inventory.tables import (
    Bmc,
    Deployment,
    Domain,
    Flavor,
    Host,
    HostGroup,
    Hypervisor,
    Image,
    Interface,
    Medium,
    OperatingSystem,
    Subnet,
    table,
    utcnow,
)

_h, _b, _d, _i, _s = (table(t) for t in (Host, Bmc, Deployment, Interface, Subnet))
_group, _domain, _os, _medium, _image, _flavor, _hypervisor, _profile, _release = (
    table(t)
    for t in (HostGroup, Domain, OperatingSystem, Medium, Image, Flavor, Hypervisor, HardwareProfile, Release)
)

_OWN = [
    "id",
    "name",
    "comment",
    "state",
    "step",
    "state_since",
    "deadline_at",
    "failure",
    "failure_kind",
    "attempts",
    "version",
    "wanted",
    "priority",
    "power",
    "power_seen_at",
    "power_wanted",
    "locked",
    "maintenance",
    "architecture",
    "firmware",
    "method",
    "handover",
    "serial",
    "parameters",
    "storage",
    "network",
    "created_at",
    "updated_at",
]
_DEPLOYMENT = [
    "id",
    "number",
    "method",
    "created_at",
    "boots",
    "progress",
    "progress_text",
    "built_at",
    "phoned_home_at",
    "failed_at",
    "failure",
    "ended_at",
    "outcome",
]
_NAMES = {
    "group": _group,
    "domain": _domain,
    "operating_system": _os,
    "medium": _medium,
    "image": _image,
    "flavor": _flavor,
    "on": _hypervisor,
    "profile": _profile,
}
_KEYS = {"on": "hypervisor_id"}

_joined = (
    _h.outerjoin(_i, _i.c.host_id == _h.c.id)
    .outerjoin(_s, _s.c.id == _i.c.subnet_id)
    .outerjoin(_b, _b.c.host_id == _h.c.id)
    .outerjoin(_d, _d.c.id == _h.c.deployment_id)
    .outerjoin(_release, _release.c.id == _d.c.release_id)
)
for _noun, _named in _NAMES.items():
    _joined = _joined.outerjoin(_named, _named.c.id == _h.c[_KEYS.get(_noun, f"{_noun}_id")])

# One row for each network card; all columns but the card's are the host's.
_WIDE = (
    select(
        *(_h.c[name] for name in _OWN),
        _h.c.due_at,
        *(_named.c.name.label(f"n_{_noun}") for _noun, _named in _NAMES.items()),
        _i.c.name.label("i_name"),
        _i.c.mac.label("i_mac"),
        _i.c.ip.label("i_ip"),
        _i.c.primary.label("i_primary"),
        _s.c.name.label("i_subnet"),
        *(
            _b.c[name].label(f"b_{name}")
            for name in ("driver", "address", "port", "username", "system", "options")
        ),
        (_b.c.secret != "").label("b_has_password"),
        *(_d.c[name].label(f"d_{name}") for name in _DEPLOYMENT),
        _release.c.digest.label("d_release"),
    )
    .select_from(_joined)
    .order_by(_h.c.name, _i.c.primary.desc(), _i.c.name, _i.c.mac)
)
BY_IDS = _WIDE.where(_h.c.id.in_(bindparam("ids", expanding=True)))
BY_NAME = _WIDE.where(or_(_h.c.name == bindparam("name"), _h.c.id == bindparam("name")))

SUMMARY = (
    select(
        _h.c.id,
        _h.c.name,
        _h.c.state,
        _h.c.step,
        _h.c.state_since,
        _h.c.deadline_at,
        _h.c.due_at,
        _h.c.failure,
        _h.c.attempts,
        _h.c.power,
        _h.c.locked,
        _h.c.maintenance,
        _group.c.name.label("group"),
        _hypervisor.c.name.label("on"),
        _i.c.mac,
        _i.c.ip,
        _d.c.progress,
    )
    .select_from(
        _h.outerjoin(_i, and_(_i.c.host_id == _h.c.id, _i.c.primary.is_(True)))
        .outerjoin(_group, _group.c.id == _h.c.group_id)
        .outerjoin(_hypervisor, _hypervisor.c.id == _h.c.hypervisor_id)
        .outerjoin(_d, and_(_d.c.id == _h.c.deployment_id, _d.c.ended_at.is_(None)))
    )
    .order_by(_h.c.name)
)
_SUMMARY = tuple(column.key for column in SUMMARY.selected_columns)
_LIST = TypeAdapter(list[HostSummary])


def views(rows: Sequence[Any]) -> list[HostView]:
    """Hosts out of the rows of BY_IDS or BY_NAME."""
    now = utcnow()
    result: list[HostView] = []
    start = 0
    while start < len(rows):
        end = start + 1
        while end < len(rows) and rows[end].id == rows[start].id:
            end += 1
        result.append(_view(rows[start:end], now))
        start = end
    return result


def _view(rows: Sequence[Any], now: datetime) -> HostView:
    row = rows[0]._mapping
    return HostView(
        **{name: row[name] for name in _OWN},
        **{noun: row[f"n_{noun}"] for noun in _NAMES},
        overdue=_overdue(row["deadline_at"], now),
        retry_at=row["due_at"] if row["failure"] is not None else None,
        interfaces=[
            InterfaceView(name=r.i_name, mac=r.i_mac, ip=r.i_ip, subnet=r.i_subnet, primary=r.i_primary)
            for r in rows
            if r.i_mac is not None
        ],
        bmc=_bmc(row),
        deployment=_deployment(row),
    )


def _bmc(row: Any) -> BmcView | None:
    if row["b_driver"] is None:
        return None
    fields = {name: row[f"b_{name}"] for name in ("driver", "address", "port", "username", "system")}
    return BmcView(
        url=bmc_url(**fields), **fields, options=row["b_options"], has_password=bool(row["b_has_password"])
    )


def _deployment(row: Any) -> DeploymentView | None:
    if row["d_id"] is None:
        return None
    return DeploymentView(release=row["d_release"], **{name: row[f"d_{name}"] for name in _DEPLOYMENT})


def summaries(rows: Sequence[Any]) -> list[HostSummary]:
    """Rows of SUMMARY as they are shown."""
    now = utcnow()
    found = []
    for row in rows:
        fields = dict(zip(_SUMMARY, row, strict=True))
        due = fields.pop("due_at")
        fields["overdue"] = _overdue(fields["deadline_at"], now)
        fields["retry_at"] = due if fields["failure"] is not None else None
        found.append(fields)
    return _LIST.validate_python(found)


def _overdue(deadline: datetime | None, now: datetime) -> bool:
    return deadline is not None and deadline < now
