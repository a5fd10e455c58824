"""Running a short program beside the daemon: an argv list, no shell, nothing on its standard input, ended with its caller."""

from __future__ import annotations

import asyncio
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

from provisiond.media.fetch import MediaError

PACKAGES = {
    "blkid": "util-linux",
    "gpgv": "gpgv",
    "sfdisk": "fdisk",
    "qemu-img": "qemu-utils",
    "prlimit": "util-linux",
    "unshare": "util-linux",
}


@asynccontextmanager
async def started(*argv: str, environment: Mapping[str, str] | None = None) -> AsyncIterator[Process]:
    """The running program; killed when the block is left before it ended. Raises MediaError when it is not installed.

    ``environment`` in place of the daemon's own.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            *argv, stdin=DEVNULL, stdout=PIPE, stderr=PIPE, env=environment
        )
    except FileNotFoundError:
        raise MediaError(
            f"the program {argv[0]} is missing; install it: apt install {PACKAGES.get(argv[0], argv[0])}"
        ) from None
    try:
        yield process
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()


async def run(*argv: str) -> tuple[int, bytes, bytes]:
    """(exit status, standard output, standard error) of a program."""
    async with started(*argv) as process:
        out, said = await process.communicate()
        return process.returncode or 0, out, said
