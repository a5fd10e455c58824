"""HTTP boot: scripts for any machine by its MAC, and everything of one build below its token.

    GET  /boot/ipxe                          entry: asks again with the MAC       /boot/ipxe/MAC, /boot/ipxe?mac=  the machine's own
    GET  /boot/grub.cfg?mac=                 /boot/pxelinux.cfg?mac=              the same for GRUB and PXELINUX
    GET  /boot/kexec?mac=                    a script that starts the same from a running Linux
    GET  /boot/loader/  /boot/loader/FILE    network boot programs
    GET  /boot/ramdisk{,-aarch64}/{kernel,initrd}                                 for machines that are not built now
    GET  /boot/TOKEN/...                     ipxe grub pxelinux kexec kernel initrd plan image image.zst image.tar.zst blockmap map
                                             installer.iso unattended preseed kickstart
                                             finish first-boot
                                             user-data meta-data network-config vendor-data (also below seed/)
    POST /boot/TOKEN/{progress,built,failed,phone-home}
    /agent/...                                                                    the ramdisk's door, see agent.py

Answers are plain sentences, never a traceback; a token is never logged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import structlog
from aiohttp import web
from aiohttp.abc import AbstractAccessLogger

from provisiond.boot import callbacks
from provisiond.boot.agent import agent_app
from provisiond.boot.image_source import ImageSource, image_source
from provisiond.boot.loader import Loaders
from provisiond.boot.machines import BootWorld, Machine, Machines, TokenRefused, normal_mac
from provisiond.boot.paths import without_token
from provisiond.boot.scripts import BootPair, Loader, NotServable, Scripts, boot_pair, live_iso, ramdisk
from provisiond.boot.shares import Shares, limits_of
from provisiond.boot.stream import send_image
from provisiond.boot.target import Boot
from provisiond.errors import RenderError
from provisiond.inventory.resolve import ResolvedHost
from provisiond.lifecycle import signals
from provisiond.templating.served import KEXEC, LOADERS, SCRIPTS, SEED

log = structlog.get_logger(__name__)

TOKEN = r"{token:[A-Za-z0-9_-]{20,128}}"  # noqa: S105 - a pattern
UNATTENDED = ("unattended", "preseed", "kickstart")
IMAGES = {"image": "raw", "image.zst": "zstd", "image.tar.zst": "tar.zst"}
"""Name of an image's stream -> its encoding."""
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class BootAccessLogger(AbstractAccessLogger):
    """One line a request, with the token cut out. Give it to the runner: AppRunner(..., access_log_class=BootAccessLogger)."""

    def log(self, request: web.BaseRequest, response: web.StreamResponse, time: float) -> None:
        log.info(
            "boot.request", client=request.remote, method=request.method, path=without_token(request.path),
            status=response.status, bytes=response.body_length, ms=round(time * 1000),
        )  # fmt: skip


def boot_app(
    world: BootWorld, loaders: Loaders, machines: Machines, scripts: Scripts, shares: Shares
) -> web.Application:
    """The application of the boot server. ``machines`` and ``scripts`` are shared with TftpFiles, so that boots are counted once."""
    app = web.Application(middlewares=[_plain_errors], client_max_size=callbacks.MAX_BODY)
    door = _Door(world, loaders, machines, scripts, shares)
    get, post = app.router.add_get, app.router.add_post
    get("/boot/ipxe", door.ipxe)
    get("/boot/ipxe/{mac}", door.ipxe)
    get("/boot/grub.cfg", door.grub)
    get("/boot/pxelinux.cfg", door.pxelinux)
    get("/boot/kexec", door.kexec)
    get("/boot/loader/", door.loader_list)
    get("/boot/loader/{file}", door.loader)
    get("/boot/ramdisk{architecture:(-aarch64)?}/{file:kernel|initrd}", door.ramdisk_file)
    build = f"/boot/{TOKEN}"
    for loader in (*LOADERS, KEXEC):
        get(f"{build}/{{loader:{loader}}}", door.build_script)
    get(f"{build}/{{file:kernel|initrd}}", door.build_file)
    get(f"{build}/installer.iso", door.iso)
    get(f"{build}/{{image:{'|'.join(IMAGES)}}}", door.image)
    get(f"{build}/blockmap", door.blockmap)
    get(f"{build}/{{kind:{'|'.join(UNATTENDED)}}}", door.unattended)
    get(f"{build}/{{kind:{'|'.join(SCRIPTS)}}}", door.script)
    for place in ("", "seed/"):
        get(f"{build}/{place}{{kind:{'|'.join(SEED)}}}", door.seed)
    post(f"{build}/{{callback:{'|'.join(callbacks.CALLBACKS)}}}", door.callback)
    app.add_subapp("/agent", agent_app(world, machines))
    return app


@web.middleware
async def _plain_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every refusal as one plain sentence. What went wrong inside is logged, not told to machines."""
    try:
        return await handler(request)
    except TokenRefused as refused:
        return web.Response(status=refused.status, text=f"{refused}\n")
    except NotServable as error:
        log.error("boot.not_servable", path=without_token(request.path), error=str(error))
        return web.Response(status=503, text=f"{error}\n")
    except web.HTTPException as answer:
        if answer.status >= 400 and answer.content_type != "text/plain":
            answer.text = f"{answer.status} {answer.reason}\n"
        raise
    except (ConnectionError, asyncio.CancelledError):
        raise
    except Exception:
        log.exception("boot.request_broke", path=without_token(request.path))
        return web.Response(status=500, text="the daemon failed to answer; its log says why\n")


class _Door:
    """The handlers."""

    def __init__(
        self, world: BootWorld, loaders: Loaders, machines: Machines, scripts: Scripts, shares: Shares
    ) -> None:
        self._world, self._loaders, self._machines, self._scripts = world, loaders, machines, scripts
        self._shares = shares

    # --- any machine ---------------------------------------------------------------------------------

    async def ipxe(self, request: web.Request) -> web.Response:
        """The machine's own script by ``mac`` (or ``uuid``); without either the entry script, which asks again with the MAC."""
        if not (request.match_info.get("mac") or request.query.get("mac") or request.query.get("uuid")):
            return _text(await self._scripts.entry("ipxe"))
        return await self._by_mac(request, "ipxe")

    async def grub(self, request: web.Request) -> web.Response:
        return await self._by_mac(request, "grub")

    async def pxelinux(self, request: web.Request) -> web.Response:
        return await self._by_mac(request, "pxelinux")

    async def kexec(self, request: web.Request) -> web.Response:
        """For a running Linux that is piped into a root shell: curl .../boot/kexec | sh. Without ``mac`` by the client's address."""
        return await self._by_mac(request, "kexec")

    async def _by_mac(self, request: web.Request, loader: Loader) -> web.Response:
        mac = normal_mac(request.match_info.get("mac") or request.query.get("mac", ""))
        machine: Machine | None = None
        if not mac and request.query.get("uuid"):
            machine = await self._machines.by_uuid(request.query["uuid"])
        elif not mac and (request.match_info.get("mac") or request.query.get("mac")):
            raise web.HTTPBadRequest(text="mac must be six pairs of hex digits, such as 52:54:00:12:34:56\n")
        if machine is None:
            found = (
                self._machines.by_mac(mac, request.remote or "")
                if mac
                else self._machines.by_ip(request.remote or "")
            )
            machine = await found
        return _text(await self._scripts.script(machine, loader, by_http=True))

    async def loader_list(self, request: web.Request) -> web.Response:
        """The programs that were found at start, as sha256sum writes them."""
        return _text("".join(f"{p.sha256}  {name}\n" for name, p in sorted(self._loaders.programs.items())))

    async def loader(self, request: web.Request) -> web.Response:
        """A network boot program, for UEFI HTTP boot."""
        name = request.match_info["file"]
        program = self._loaders.get(name)
        if program is None:
            package = self._loaders.missing.get(name)
            hint = f"; install Debian's package {package} and restart provisiond" if package else ""
            raise web.HTTPNotFound(text=f"there is no network boot program {name!r}{hint}\n")
        kind = "application/efi" if name.endswith(".efi") else "application/octet-stream"
        return web.Response(body=program.content, content_type=kind, headers={"ETag": f'"{program.sha256}"'})

    # --- machines that are not built now -----------------------------------------------------------------------------

    async def ramdisk_file(self, request: web.Request) -> web.StreamResponse:
        architecture = request.match_info["architecture"].removeprefix("-") or "x86_64"
        return _file(ramdisk(self._world.settings, architecture), request.match_info["file"])

    # --- one build ---------------------------------------------------------------------------------------

    async def _machine(self, request: web.Request) -> Machine:
        return await self._machines.by_token(request.match_info["token"])

    async def build_script(self, request: web.Request) -> web.Response:
        loader: Any = request.match_info["loader"]
        return _text(await self._scripts.script(await self._machine(request), loader, by_http=True))

    async def build_file(self, request: web.Request) -> web.StreamResponse:
        """Kernel or initrd of what is being booted; nothing once the machine boots its disk."""
        machine = await self._machine(request)
        if machine.target.boot is Boot.LOCAL:
            raise _gone(machine)
        return _file(boot_pair(self._world.settings, machine), request.match_info["file"])

    async def iso(self, request: web.Request) -> web.StreamResponse:
        """The whole ISO, for installers that are a live system of their own."""
        machine = await self._machine(request)
        if machine.target.boot is not Boot.INSTALLER:
            raise _gone(machine)
        return web.FileResponse(
            live_iso(self._world.settings, machine), headers={"Content-Type": "application/octet-stream"}
        )

    async def image(self, request: web.Request) -> web.StreamResponse:
        """The stream in the encoding that its name says; machines of a subnet share its limits."""
        host, source = await self._image(request, IMAGES[request.match_info["image"]])
        limits = limits_of(host.subnet, self._world.settings.boot)
        return await send_image(request, source, self._shares, limits, host.id)

    async def blockmap(self, request: web.Request) -> web.Response:
        """Which MiB of the disk the stream fills, and its compressed frames, in JSON."""
        _, source = await self._image(request, "raw")
        assert source.map is not None
        return _text(source.map.json(), "application/json")

    async def _image(self, request: web.Request, encoding: str) -> tuple[ResolvedHost, ImageSource]:
        machine = await self._image_machine(request)
        assert machine.host is not None
        source = await asyncio.to_thread(image_source, self._world.settings, machine.host, encoding)
        return machine.host, source

    async def _image_machine(self, request: web.Request) -> Machine:
        machine = await self._machine(request)
        if machine.target.boot is not Boot.IMAGE:
            raise _gone(machine)
        return machine

    async def unattended(self, request: web.Request) -> web.Response:
        """The installer's answers, while it installs."""
        machine = await self._machine(request)
        if machine.target.boot is not Boot.INSTALLER or machine.host is None:
            raise _gone(machine)
        try:
            text, kind = await self._world.renderings.unattended(
                machine.host, self._machines.urls_of(machine)
            )
            return _text(text, kind)
        except RenderError as error:
            await self._give_up(machine, error)
            raise web.HTTPServiceUnavailable(
                text="this file cannot be rendered; the host's history says why\n"
            ) from error

    async def script(self, request: web.Request) -> web.Response:
        """What an installer's own recipe may run in the new system."""
        machine = await self._machine(request)
        assert machine.host is not None
        try:
            return _text(
                await self._world.renderings.serve(
                    machine.host, request.match_info["kind"], self._machines.urls_of(machine)
                )
            )
        except RenderError as error:
            await self._give_up(machine, error)
            raise web.HTTPServiceUnavailable(
                text="this file cannot be rendered; the host's history says why\n"
            ) from error

    async def seed(self, request: web.Request) -> web.Response:
        """NoCloud files, for the ramdisk, for the first boot, and for installers that look for their answers there."""
        machine = await self._machine(request)
        assert machine.host is not None
        try:
            text = await self._world.renderings.seed_file(
                machine.host, request.match_info["kind"], self._machines.urls_of(machine)
            )
        except RenderError as error:
            await self._give_up(machine, error)
            raise web.HTTPServiceUnavailable(
                text="this file cannot be rendered; the host's history says why\n"
            ) from error
        if text is None:
            raise web.HTTPNotFound(text="this build has no such file\n")
        return _text(text)

    async def callback(self, request: web.Request) -> web.Response:
        machine = await self._machine(request)
        assert machine.host is not None and machine.host.deployment is not None
        told = callbacks.CALLBACKS[request.match_info["callback"]]
        given = callbacks.without_secrets(await callbacks.fields(request), machine.host)
        await told(self._world, machine.host.deployment.id, given)
        return _text("ok\n")

    async def _give_up(self, machine: Machine, error: Exception) -> None:
        """What cannot be served fails the build at once, with the reason, instead of by its time limit."""
        log.error("boot.not_servable", host=machine.name, error=str(error))
        assert machine.host is not None and machine.host.deployment is not None
        await signals.failed(self._world.store, machine.host.deployment.id, str(error), "")


def _text(text: str, content_type: str = "text/plain") -> web.Response:
    return web.Response(text=text, content_type=content_type, headers={"Cache-Control": "no-store"})


def _file(pair: BootPair, what: str) -> web.FileResponse:
    path: Path = getattr(pair, what)
    return web.FileResponse(path, headers={"Content-Type": "application/octet-stream"})


def _gone(machine: Machine) -> web.HTTPGone:
    return web.HTTPGone(
        text=f"there is nothing of this here now: host {machine.name}: {machine.target.why}\n"
    )
