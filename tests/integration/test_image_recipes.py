"""Images built by a recipe: a small program of one's own, run as the daemon runs the real ones, and what comes of it."""

from __future__ import annotations

import asyncio
import os
import subprocess
from pathlib import Path

import pytest
from sqlmodel import select

from provisiond.config import ImageSettings, Settings, StateSettings
from provisiond.inventory.store import Store
from provisiond.inventory.tables import Event, Image
from provisiond.media.blockmap import MIB
from provisiond.media.fetch import MediaError
from provisiond.media.jobs import Job, MediaJobs
from provisiond.media.recipes import BuildRequest, find_recipe, recipe_dirs
from tests.integration.doors import open_doors

GOOD = """#!/bin/sh
echo "progress 10 packages"
echo "noise on standard error" >&2
[ "$1" = 7 ] || exit 3
[ -z "$PROVISIOND_SECRET" ] || exit 4
env >"$2/environment"
sleep 1000 & # what a recipe leaves behind ends with it
echo $! >"$2/left"
truncate -s 8M "$2/image.raw"
printf '%s' "$IMAGE_WITH $IMAGE_PACKAGES $IMAGE_SIZE_MIB $IMAGE_MIRROR" | dd of="$2/image.raw" bs=1M seek=5 conv=notrunc status=none
echo "progress 100 done"
"""


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    recipes = tmp_path / "recipes"
    recipes.mkdir()
    return Settings(state=StateSettings(dir=tmp_path / "state"), images=ImageSettings(recipes=[recipes]))


def write_recipe(settings: Settings, name: str, text: str) -> None:
    path = settings.images.recipes[0] / name
    path.write_text(text)
    path.chmod(0o755)


async def build(settings: Settings, store: Store, request: BuildRequest) -> Job:
    """Build to the end."""
    jobs = MediaJobs(settings, store)
    job = await jobs.start_build(request, operating_system=None, user="tiny", actor="user:eva")
    async with asyncio.timeout(60):
        await job.finished.wait()
    await jobs.close()
    return job


async def test_one_s_own_recipe(
    settings: Settings, sqlite_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told the wishes and nothing of the daemon's, says how far it is, and what it made is an image like any other."""
    monkeypatch.setenv("PROVISIOND_SECRET", "x")
    write_recipe(settings, "tiny", GOOD)
    said: list[tuple[str, int]] = []
    monkeypatch.setattr(Job, "report", lambda self, what, done, total: said.append((what, done)))
    wish = BuildRequest(
        "mine",
        "tiny-7",
        mirror="http://mirror.lan/debian",
        size_mib=8,
        features=("lvm2",),
        packages=("vim", "g++"),
    )
    job = await build(settings, sqlite_store, wish)
    assert job.state == "done", job.message
    assert ("packages", 10) in said
    async with sqlite_store.read() as session:
        row = (await session.execute(select(Image))).scalar_one()
    assert (row.name, row.size, row.user, row.content) == ("mine", 8 * MIB, "tiny", "disk")
    assert row.verified_by == "built here by recipe tiny-7"
    content = (settings.state.image_dir / row.path).read_bytes()
    assert content[5 * MIB :].rstrip(b"\0") == b"lvm2 vim g++ 8 http://mirror.lan/debian"
    assert not list(settings.state.image_dir.glob(".build-*"))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("#!/bin/sh\necho 'no such package' >&2\nexit 9\n", r"exit 9\): no such package"),
        ("#!/bin/sh\n", "must leave one file"),
        ("#!/bin/sh\ntouch $2/image.raw $2/image.tar\n", "it left 2"),
        ("#!/bin/sh\nln -s /etc/passwd $2/image.raw\n", "it left 0"),
        ("#!/bin/sh\necho x >$2/image.img\n", "formats are not guessed"),
        ("#!/bin/sh\ntruncate -s 2M $2/image.raw\n", "the image is empty"),
    ],
)
async def test_recipes_that_fail(settings: Settings, sqlite_store: Store, text: str, why: str) -> None:
    """The job ends with the recipe's last words, no image, and nothing on the disk."""
    write_recipe(settings, "tiny", text)
    job = await build(settings, sqlite_store, BuildRequest("mine", "tiny-7"))
    assert job.state == "failed"
    with pytest.raises(MediaError, match=why):
        raise MediaError(job.message)
    async with sqlite_store.read() as session:
        assert [e.kind for e in (await session.execute(select(Event))).scalars()] == ["image.failed"]
    assert not list(settings.state.image_dir.iterdir())


async def test_a_stopped_daemon_ends_the_recipe(
    settings: Settings, sqlite_store: Store, tmp_path: Path
) -> None:
    """Whatever the recipe started ends with it: it has a process namespace of its own."""
    mark = f"86400.{os.getpid()}"
    write_recipe(settings, "slow", f"#!/bin/sh\nsleep {mark} &\ntouch {tmp_path}/begun\nsleep {mark}\n")
    jobs = MediaJobs(settings, sqlite_store)
    job = await jobs.start_build(BuildRequest("mine", "slow"), operating_system=None, actor="user:eva")
    async with asyncio.timeout(60):
        while not (tmp_path / "begun").exists():
            await asyncio.sleep(0.05)
        await jobs.close()
        assert job.state == "failed" and "stopped" in job.message
        while subprocess.run(["pgrep", "-f", f"sleep {mark}"], capture_output=True).returncode == 0:
            await asyncio.sleep(0.05)
    assert not list(settings.state.image_dir.glob(".build-*"))


def test_recipes_are_found(settings: Settings) -> None:
    """Debian's comes along; one's own of the same name comes first, one of the whole name before all."""
    assert find_recipe(recipe_dirs(settings), "debian-12")[0].name == "debian"
    write_recipe(settings, "debian", GOOD)
    assert find_recipe(recipe_dirs(settings), "debian-12") == (settings.images.recipes[0] / "debian", "12")
    write_recipe(settings, "debian-12", GOOD)
    assert find_recipe(recipe_dirs(settings), "debian-12") == (settings.images.recipes[0] / "debian-12", "")
    with pytest.raises(MediaError, match="there are: debian, debian-12"):
        find_recipe(recipe_dirs(settings), "plan9-4")


@pytest.mark.parametrize(
    "wrong",
    [
        {"recipe": "../../bin/sh"},
        {"packages": ("a; rm",)},
        {"features": ("--evil",)},
        {"mirror": "http://169.254.169.254/"},
    ],
)
def test_what_no_recipe_is_told(wrong: dict[str, object]) -> None:
    """Nothing that could be an option, a path or a command, and no mirror nothing is fetched from."""
    with pytest.raises(MediaError):
        BuildRequest(**{"name": "mine", "recipe": "debian-12", **wrong}).check()  # type: ignore[arg-type]


async def test_only_an_admin_builds(tmp_path: Path) -> None:
    """Packages run scripts as root on the daemon's machine, so an operator may not choose them."""
    async with open_doors(tmp_path / "state") as doors:
        await doors.call("POST", "/users", {"name": "olga", "role": "operator"})
        _, made = await doors.call("POST", "/tokens", {"user": "olga"})
        body = {"name": "x", "recipe": "plan9-4"}
        assert (await doors.call("POST", "/image-builds", body, token=made["token"]))[0] == 403
        status, answer = await doors.call("POST", "/image-builds", body)
        assert status == 422 and "there is no recipe" in str(answer)
