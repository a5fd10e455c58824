"""Renderings: what the lifecycle and the boot room ask for by host and kind, each host from the release its build is pinned to."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from provisiond.config import TemplateSettings
from provisiond.errors import NotFound, RenderError
from provisiond.inventory.masking import mask
from provisiond.inventory.release_tables import Release
from provisiond.inventory.resolve import ResolvedHost
from provisiond.inventory.secrets import SecretBox
from provisiond.inventory.store import RELEASES, Store
from provisiond.templating.catalogue import catalogue_of, ensure_release, read_directory, shipped_directory
from provisiond.templating.context import BootFiles, BuildUrls, build_context, machine_context
from provisiond.templating.current import Standing, load_standing, release_for
from provisiond.templating.record import Record
from provisiond.templating.render import Limits, Renderer
from provisiond.templating.served import (
    CONTENT_TYPES,
    SEED,
    kinds_served,
    needs_boot_files,
    seed_kind,
    unattended_kind,
)

MAX_RENDERERS = (
    16  # a fleet's hosts are built with few releases at a time; one holds a few MB of compiled templates
)


class Renderings:
    """Renders templates for hosts. Made by ``open``."""

    def __init__(self, store: Store, limits: Limits, authorized_keys: Sequence[str]) -> None:
        self._store = store
        self._limits = limits
        self.authorized_keys = tuple(authorized_keys)
        self._renderers: OrderedDict[str, Renderer] = OrderedDict()
        self._loading = asyncio.Lock()
        self._moved = store.subscribe(RELEASES)
        self._standing: Standing | None = None
        self._looks = 0
        self.record = Record(store)

    @classmethod
    async def open(
        cls, store: Store, settings: TemplateSettings, authorized_keys: Sequence[str] = ()
    ) -> Renderings:
        """Read the directory of templates and store its release; see ensure_release on when it becomes the current one.

        ``authorized_keys`` are public keys put on every machine beside the host's own. Raises ConfigError, RenderError.
        """
        catalogue = await asyncio.to_thread(
            read_directory, Path(settings.dir) if settings.dir else shipped_directory()
        )
        await ensure_release(store, catalogue)
        made = cls(store, Limits(settings.render_seconds, settings.render_bytes), authorized_keys)
        await made.renderer()
        return made

    async def close(self) -> None:
        """Write down what was served and is not written yet."""
        await self.record.close()

    async def standing(self) -> Standing:
        """What is current where, read again only after something moved here or in another daemon."""
        if self._standing is not None and self._store.hears and not self._moved.is_set():
            return self._standing
        self._moved.clear()
        self._standing = None
        self._looks += 1
        look = self._looks
        async with self._store.read() as session:
            found = await load_standing(session)
        if look == self._looks:  # else somebody began to look later, and may have seen more
            self._standing = found
        return found

    async def current_for(self, host: ResolvedHost) -> str:
        """The id of the release that a new build of this host would be pinned to. Raises NotFound."""
        return release_for(host.id, host.group_ids, await self.standing())

    async def renderer_for(self, host: ResolvedHost) -> Renderer:
        """Of the release its build is pinned to, or that a build would get now. Raises NotFound."""
        return await self.renderer(host.release_id or await self.current_for(host))

    async def renderer(self, release_id: str | None = None) -> Renderer:
        """The renderer of a release; None: of the one that is current everywhere, which strangers get. Raises NotFound."""
        wanted = release_id or release_for("", (), await self.standing())
        if wanted not in self._renderers:
            async with self._loading:
                if wanted not in self._renderers:
                    self._renderers[wanted] = await self._load(wanted)
                    if len(self._renderers) > MAX_RENDERERS:
                        self._renderers.popitem(last=False)
        self._renderers.move_to_end(wanted)
        return self._renderers[wanted]

    async def _load(self, release_id: str) -> Renderer:
        async with self._store.read() as session:
            release = await session.get(Release, release_id)
        if release is None:
            raise NotFound("release", release_id)
        return Renderer(await asyncio.to_thread(catalogue_of, release), self._limits)

    async def serve(
        self,
        host: ResolvedHost,
        kind: str,
        urls: BuildUrls,
        boot: BootFiles | None = None,
        *,
        noted: bool = True,
    ) -> str:
        """The text of ``kind`` (kickstart, user-data, ipxe-installer ...) for the machine; that its build was served it is written down
        (record.py), unless it is not ``noted`` because it is for no build. Raises RenderError."""
        renderer, template = await self._template(host, kind)
        keys = self.authorized_keys
        text = renderer.render(template, build_context(host, urls, authorized_keys=keys, boot=boot))
        if noted and host.deployment is not None:

            def masked() -> str:
                hidden = host.with_parameters(mask(host.parameters))
                shown = boot.masked(urls.token) if boot else None
                context = build_context(hidden, urls.masked(), authorized_keys=keys, boot=shown)
                return renderer.render(template, context)

            self.record.note(host.deployment.id, kind, template, text, masked)
        return text

    async def _template(self, host: ResolvedHost, kind: str) -> tuple[Renderer, str]:
        renderer = await self.renderer_for(host)
        system = host.operating_system
        try:
            return renderer, renderer.find(kind, *host.family_version)
        except NotFound:
            what = (
                f"{system.name} ({system.family} {system.version})"
                if system
                else "a host without an operating system"
            )
            raise RenderError(
                kind, f"there is no {kind} template for {what}, which host {host.name} is to get"
            ) from None

    async def render_machine(self, kind: str, base: str, boot: BootFiles | None = None) -> str:
        """The text of a boot ``kind`` (ipxe-entry, ipxe-local ...) for a machine that is no host. Raises RenderError, NotFound."""
        renderer = await self.renderer()
        return renderer.render(renderer.find(kind), machine_context(base, boot))

    async def unattended(self, host: ResolvedHost, urls: BuildUrls) -> tuple[str, str]:
        """The installer's unattended file and its content type. Raises RenderError."""
        kind = unattended_kind(host, (await self.renderer_for(host)).catalogue)
        return await self.serve(host, kind, urls), CONTENT_TYPES.get(kind, "text/plain")

    async def seed_file(self, host: ResolvedHost, file: str, urls: BuildUrls) -> str | None:
        """One file (of SEED) of the host's NoCloud seed; None where its build has no such file. Raises RenderError."""
        kind = seed_kind(host, (await self.renderer_for(host)).catalogue, file)
        return await self.serve(host, kind, urls) if kind else None

    async def seed(self, host: ResolvedHost, boot_url: str, box: SecretBox) -> tuple[tuple[str, str], ...]:
        """The NoCloud files (name, text) of the host's open deployment. Raises RenderError."""
        if host.deployment is None:
            raise RenderError("user-data", f"host {host.name} has no build under way")
        urls = BuildUrls.of(boot_url, box.decrypt(host.deployment.secret_seed))
        return tuple([(kind, await self.serve(host, kind, urls)) for kind in SEED])

    async def check(self, host: ResolvedHost, boot_url: str) -> str:
        """Render all that a build of this host will be served, and throw it away. Raises RenderError before anything happens.

        Returns the id of the release it was rendered from: its build's, or the one that a new build is to be pinned to.
        """
        release_id = host.release_id or await self.current_for(host)
        urls = BuildUrls.of(boot_url, "TOKEN")
        checked = host if host.deployment else in_build(host, release_id)
        contexts = tried_contexts(checked, urls, self.authorized_keys)
        for kind in kinds_served(checked, (await self.renderer(release_id)).catalogue):
            renderer, template = await self._template(checked, kind)
            renderer.render(template, contexts[needs_boot_files(kind)])
        return release_id


def tried_contexts(
    host: ResolvedHost, urls: BuildUrls, authorized_keys: Sequence[str], *, next_build: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What every template of a build sees, made once: without and with ``boot``, for the kinds of ``needs_boot_files``."""
    boot = tried_boot(host, urls)
    whole = build_context(host, urls, authorized_keys=authorized_keys, boot=boot, next_build=next_build)
    return {name: value for name, value in whole.items() if name != "boot"}, whole


def tried_boot(host: ResolvedHost, urls: BuildUrls) -> BootFiles:
    """Stands for what a loader would fetch, where something is rendered that no loader asked for."""
    return BootFiles(
        mac=host.mac or "00:00:00:00:00:00",
        why="check",
        kernel="kernel",
        initrd="initrd",
        url=urls.base.partition("/boot/")[0],
        ticket="ticket",
    )


def in_build(host: ResolvedHost, release_id: str | None) -> ResolvedHost:
    """The host as it would be during its first build, with this release; the build's id is all zeros."""
    placeholder: Any = SimpleNamespace(
        id="00000000-0000-0000-0000-000000000000", number=1, release_id=release_id
    )
    return replace(host, deployment=placeholder)
