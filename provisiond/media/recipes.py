"""Images made here: a recipe, which is a program, builds one from packages, and what it built is added like any other image.

A recipe is called `RECIPE VERSION DIRECTORY` and writes DIRECTORY/image.FORMAT (formats.FORMATS). Its wishes are in the
environment (IMAGE_NAME, IMAGE_ARCHITECTURE, IMAGE_MIRROR, IMAGE_SIZE_MIB, IMAGE_WITH, IMAGE_PACKAGES); lines `progress PERCENT TEXT` on its
standard output say how far it is. It runs as root in mount and process namespaces of its own, so that nothing of it outlives it.
"""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sysconfig
import tempfile
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from provisiond.config import Settings
from provisiond.media.fetch import MediaError, OnProgress, check_url
from provisiond.media.formats import format_of
from provisiond.media.programs import started

SECONDS = 2 * 3600
_NAME = re.compile(r"[a-z0-9][a-z0-9.+-]{0,63}")
_PROGRESS = re.compile(r"progress (\d{1,3}) ([ -~]{1,200})")
_PASSED_ON = ("http_proxy", "https_proxy", "no_proxy")
_PLACES = (Path(__file__).resolve().parents[2], Path(sysconfig.get_path("data")) / "share" / "provisiond")


@dataclass(frozen=True)
class BuildRequest:
    """``recipe`` is NAME or NAME-VERSION, such as debian-12; ``features`` are words the recipe knows, such as lvm2."""

    name: str
    recipe: str
    architecture: str = "x86_64"
    mirror: str = ""
    size_mib: int = 0
    features: tuple[str, ...] = ()
    packages: tuple[str, ...] = ()

    def check(self) -> None:
        """Raises MediaError when something cannot be handed to a recipe."""
        for word in (self.recipe, *self.features, *self.packages):
            if not _NAME.fullmatch(word):
                raise MediaError(f"{word!r} is no name of a recipe, feature or package")
        if self.mirror:
            check_url(self.mirror)

    def environment(self) -> dict[str, str]:
        """What a recipe is told; no more of the daemon's own than the way out."""
        given = {
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root", "LANG": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive",
            "IMAGE_NAME": self.name, "IMAGE_ARCHITECTURE": self.architecture, "IMAGE_MIRROR": self.mirror,
            "IMAGE_SIZE_MIB": str(self.size_mib or ""), "IMAGE_WITH": " ".join(self.features),
            "IMAGE_PACKAGES": " ".join(self.packages),
        }  # fmt: skip
        return {**given, **{name: os.environ[name] for name in _PASSED_ON if name in os.environ}}


def recipe_dirs(settings: Settings) -> list[Path]:
    """Where recipes lie, in the order they are looked for: one's own before those that come along."""
    return [*settings.images.recipes, *(place / "pxe" / "image" / "recipes" for place in _PLACES)]


def find_recipe(dirs: Sequence[Path], recipe: str) -> tuple[Path, str]:
    """(the program, the version it is to be called with). Raises MediaError with what there is. Blocks.

    A program of the whole name comes first, then one of the part before the last dash: debian-12 is `debian 12`.
    """
    name, _, version = recipe.rpartition("-")
    for wanted, given in ((recipe, ""), (name, version)):
        for folder in dirs:
            path = folder / wanted
            if wanted and _runs(path):
                return path, given
    known = sorted(
        {path.name for folder in dirs if folder.is_dir() for path in folder.iterdir() if _runs(path)}
    )
    raise MediaError(
        f"there is no recipe {recipe!r}; there are: {', '.join(known) or 'none'} (images.recipes)"
    )


def _runs(path: Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


@asynccontextmanager
async def built(settings: Settings, request: BuildRequest, on_progress: OnProgress) -> AsyncIterator[Path]:
    """The image file that the recipe makes, while the block lasts. Raises MediaError with the recipe's last words."""
    request.check()
    recipe, version = await asyncio.to_thread(find_recipe, recipe_dirs(settings), request.recipe)
    if os.geteuid() != 0:
        raise MediaError(
            "images are built as root: run the daemon as root, or build the image elsewhere and add it"
        )
    folder = await asyncio.to_thread(_workplace, settings, request.name)
    try:
        await _run([str(recipe), version, str(folder)], request.environment(), recipe.name, on_progress)
        yield await asyncio.to_thread(_result, folder, recipe.name)
    finally:
        await asyncio.to_thread(shutil.rmtree, folder, True)


def _workplace(settings: Settings, name: str) -> Path:
    """A fresh directory beside the images; what a daemon that died left of an earlier one goes."""
    settings.state.image_dir.mkdir(parents=True, exist_ok=True)
    for old in settings.state.image_dir.glob(f".build-{name}-*"):
        shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f".build-{name}-", dir=settings.state.image_dir))


async def _run(
    argv: Sequence[str], environment: Mapping[str, str], recipe: str, on_progress: OnProgress
) -> None:
    """In namespaces of its own, whose first process takes all others with it when it ends."""
    own = ("unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", "nice", "-n", "10")
    last: deque[str] = deque(maxlen=5)

    def progress(line: str) -> None:
        if found := _PROGRESS.fullmatch(line):
            on_progress(found[2], min(100, int(found[1])), 100)

    try:
        async with asyncio.timeout(SECONDS), started(*own, *argv, environment=environment) as process:
            assert process.stdout is not None and process.stderr is not None
            await asyncio.gather(_listen(process.stdout, progress), _listen(process.stderr, last.append))
            status = await process.wait()
    except TimeoutError:
        raise MediaError(f"recipe {recipe} took more than {SECONDS // 60} minutes: ended") from None
    if status != 0:
        raise MediaError(f"recipe {recipe} failed (exit {status}): {' | '.join(last) or 'it said nothing'}")


async def _listen(stream: asyncio.StreamReader, take: Callable[[str], None]) -> None:
    """Every line that says something, without its end if it is endless."""
    left = b""
    while piece := await stream.read(4096):
        *lines, left = (left + piece).replace(b"\r", b"\n").split(b"\n")
        left = left[-4096:]
        for line in lines:
            if text := line.decode(errors="replace").strip():
                take(text[:200])


def _result(folder: Path, recipe: str) -> Path:
    found = sorted(path for path in folder.glob("image.*") if path.is_file() and not path.is_symlink())
    if len(found) != 1:
        raise MediaError(f"recipe {recipe} must leave one file image.FORMAT; it left {len(found)}")
    format_of(str(found[0]))
    return found[0]
