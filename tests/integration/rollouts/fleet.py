"""A fleet that stands already, around the real engine and controller: hosts in service on a release, and machines whose builds fail on another."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from sqlalchemy import insert, select

from provisiond.inventory.release_tables import EVERYWHERE, Release, ReleasePointer, Rollout
from provisiond.inventory.tables import (
    Bmc,
    Deployment,
    Event,
    Host,
    HostGroup,
    Image,
    Interface,
    Subnet,
    new_id,
    new_row,
    table,
    utcnow,
)
from provisiond.lifecycle import signals
from provisiond.observe.follow import History
from provisiond.rollouts import requests
from provisiond.rollouts.controller import Rollouts
from provisiond.rollouts.requests import RolloutStart, RolloutView
from provisiond.templating.catalogue import Catalogue
from tests.integration.engine.rig import KEY, Rig

OVER = ("done", "back", "cancelled")


@dataclass
class Fleet(Rig):
    """``broken`` are ids of releases whose machines report that their build failed; ``move_boundary`` is the controller's."""

    broken: set[str] = field(default_factory=set)
    move_boundary: Callable[[str, str], None] | None = None
    rollout_lease: float = 4.0

    async def open(self) -> Fleet:
        await super().open()
        self.history = History(self.store)
        await self.history.start()
        self.rollouts = Rollouts(
            self.store, self.settings.rollout, self.reconciler.owner, lease_seconds=self.rollout_lease, sweep_seconds=0.5,
            boundary=self.move_boundary,
        )  # fmt: skip
        self.history.listen(self.rollouts.heard)
        return self

    async def begin(self) -> None:
        await self.reconciler.start()
        await self.rollouts.start()

    async def close(self) -> None:
        await self.rollouts.stop()
        await self.history.close()
        await super().close()

    # --- what stands ------------------------------------------------------------------------------------------

    async def group(self, name: str, parent: str | None = None) -> str:
        """A group below ``parent``; its id."""
        row = new_row(HostGroup, id=new_id(), name=name, parent_id=parent)
        async with self.store.write() as session:
            await session.execute(insert(table(HostGroup)), row)
        return str(row["id"])

    async def stand(
        self, count: int, group_id: str | None, *, first: int = 0, seconds: float = 30.0
    ) -> list[str]:
        """``count`` hosts of the group in service on what is current; their ids."""
        async with self.store.write() as session:
            subnet = (await session.execute(select(Subnet))).scalars().first()
            image = (await session.execute(select(Image))).scalars().first()
            current = (
                await session.execute(
                    select(ReleasePointer.release_id).where(ReleasePointer.place == EVERYWHERE)
                )
            ).scalar_one()
            hosts, cards, bmcs, builds = [], [], [], []
            now = utcnow()
            for number in range(first, first + count):
                host_id, build_id, name = new_id(), new_id(), f"h{number:03}"
                hosts.append(
                    new_row(Host, id=host_id, name=name, state="active", group_id=group_id, image_id=image.id,
                            limit_key=f"fake:{name}:", deployment_id=build_id, power="on")
                )  # fmt: skip
                ip = f"192.0.2.{10 + number}" if number < 240 else None
                mac = f"52:54:00:01:{number >> 8:02x}:{number & 255:02x}"
                cards.append(
                    new_row(Interface, id=new_id(), host_id=host_id, mac=mac, ip=ip, subnet_id=subnet.id)
                )
                secret = self.box.encrypt("secret")
                bmcs.append(
                    new_row(Bmc, id=new_id(), host_id=host_id, driver="fake", address=name, secret=secret)
                )
                begun = now - timedelta(hours=1)
                builds.append(
                    new_row(Deployment, id=build_id, host_id=host_id, release_id=current, outcome="active", created_at=begun,
                            ended_at=begun + timedelta(seconds=seconds))
                )  # fmt: skip
            for model, rows in ((Host, hosts), (Interface, cards), (Bmc, bmcs), (Deployment, builds)):
                await session.execute(insert(table(model)), rows)
        return [row["id"] for row in hosts]

    async def release(self, note: str, *, broken: bool = False) -> Release:
        """Another release than the current one; machines built with a ``broken`` one report a failure."""
        async with self.store.write() as session:
            newest = (
                (await session.execute(select(Release).order_by(Release.number.desc()))).scalars().first()
            )
            assert newest is not None
            files = {**newest.files}
            path = "cloud-init/meta-data.j2" if "cloud-init/meta-data.j2" in files else next(iter(files))
            files[path] = files[path].rstrip("\n") + "\n{# " + note + " #}\n"
            made = Release(
                number=newest.number + 1, digest=Catalogue.of(files).digest, files=files, message=note
            )
            session.add(made)
        if broken:
            self.broken.add(made.id)
        return made

    async def machine_answers(self, host_id: str) -> None:
        """As the rig's, but those built with a broken release fail as soon as they run."""
        async with self.store.read() as session:
            found = (
                select(Host.state, Host.deployment_id, Deployment.release_id)
                .join(Deployment, Deployment.id == Host.deployment_id)
                .where(Host.id == host_id)
            )
            row = (await session.execute(found)).first()
        if row is None:
            return
        if row.release_id in self.broken:
            await signals.failed(
                self.store,
                row.deployment_id,
                "first boot: the script ended with status 1",
                "+ false\n+ exit 1\n",
            )
            return
        if row.state == "building":
            await signals.built(self.store, row.deployment_id)
        await signals.phone_home(self.store, row.deployment_id, [KEY])

    # --- looking ------------------------------------------------------------------------------------------------

    async def start_rollout(self, **spec: Any) -> RolloutView:
        spec = {"window_seconds": 0, "seed": "s", **spec}
        return await requests.start(self.store, self.settings.rollout, RolloutStart(**spec), actor="user:eva")

    async def reaches(self, number: int, *states: str, seconds: float = 120.0) -> RolloutView:
        """Wait until the rollout is in one of these states (default: over)."""
        end = time.monotonic() + seconds
        while True:
            view = await requests.show(self.store, number)
            if view.state in (states or OVER):
                return view
            assert time.monotonic() < end, f"rollout {number} is {view.state}: {view.why} {view.numbers}"
            await asyncio.sleep(0.05)

    async def rollout(self, number: int = 1) -> Rollout:
        async with self.store.read() as session:
            return (await session.execute(select(Rollout).where(Rollout.number == number))).scalars().one()

    async def hosts(self) -> dict[str, Host]:
        async with self.store.read() as session:
            return {h.id: h for h in (await session.execute(select(Host))).scalars()}

    async def told(self, prefix: str = "rollout.") -> list[Event]:
        """Events of these kinds in their order."""
        async with self.store.read() as session:
            return list(
                (
                    await session.execute(
                        select(Event).where(Event.kind.like(f"{prefix}%")).order_by(Event.id)
                    )
                ).scalars()
            )

    async def pointer(self, place: str) -> str | None:
        async with self.store.read() as session:
            found = select(ReleasePointer.release_id).where(ReleasePointer.place == place)
            return (await session.execute(found)).scalar()
