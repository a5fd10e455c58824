"""An image that is a root file system in a tar: unpacked onto file systems that are made and mounted already.

The stream goes through zstd into tar as it comes. A connection that breaks off is taken up at the byte where it did; both programs
wait meanwhile. What is checked is the SHA-256 of all bytes that were taken, at the end: nothing starts from a tree that is not whole.
"""

import hashlib
import subprocess
import time
from pathlib import Path
from typing import Any

from ramdisk_agent import sources
from ramdisk_agent.http import Broken, ask
from ramdisk_agent.log import LOG
from ramdisk_agent.work import Failed, Work

PATIENCE = 900.0  # seconds without a byte before the work fails
_TAR = [
    "tar",
    "--extract",
    "--file=-",
    "--numeric-owner",
    "--preserve-permissions",
    "--xattrs",
    "--xattrs-include=*",
    "--acls",
]


def write(work: Work, image: dict[str, Any], where: Path) -> None:
    """Unpack the plan's `image` below `where`. Progress goes from 0 to 90. Raises Failed, Stopped."""
    unzstd = subprocess.Popen(
        ["zstd", "-dcq"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert unzstd.stdin and unzstd.stdout
    tar = subprocess.Popen([*_TAR, "-C", str(where)], stdin=unzstd.stdout, stderr=subprocess.PIPE)
    unzstd.stdout.close()  # so that zstd hears when tar ends
    try:
        digest = _feed(work, image, unzstd)
        unzstd.stdin.close()
        said = (tar.stderr.read() if tar.stderr else b"").decode(errors="replace").strip()
        LOG.add(f"tar: {said[-2000:]}")
        if unzstd.wait() or tar.wait():
            raise Failed(
                f"the image cannot be unpacked: {said.rpartition(chr(10))[2] or 'zstd failed'}; add the image again"
            )
    finally:
        for program in (unzstd, tar):
            program.kill()
            program.wait()
    if digest != image["sha256"]:
        raise Failed(
            f"the image that came has SHA-256 {digest}, not {image['sha256']}: verify the image and test the network"
        )


def _feed(work: Work, image: dict[str, Any], program: "subprocess.Popen[bytes]") -> str:
    """All bytes of the image into a program; their SHA-256."""
    digest, done, size, since = hashlib.sha256(), 0, 0, time.monotonic()
    view, trouble = memoryview(bytearray(256 * 1024)), ""
    assert program.stdin

    def tick() -> None:
        work.progress(90 * done // size if size else 0, f"unpacking the image{trouble}", done, size)

    while not size or done < size:
        tick()
        try:
            headers = work.client.headers_for(image["url"]) | ({"Range": f"bytes={done}-"} if done else {})
            answer = ask("GET", image["url"], headers, timeout=sources.STALL)
        except OSError as error:
            trouble = f" (asking again: {error})"
        else:
            try:
                if answer.status == 503:  # others are served first
                    since = time.monotonic()
                if 400 <= answer.status < 500 and answer.status not in (408, 425, 429):
                    raise Failed(
                        f"{image['url']} is refused: {answer.reason}; does the image still have its file?"
                    )
                if answer.status != (206 if done else 200) or answer.left is None:
                    raise Broken(answer.reason)
                size, trouble = done + answer.left, ""
                answer.set_timeout(sources.TICK)
                while got := sources.received(answer, view, tick):
                    digest.update(view[:got])
                    program.stdin.write(view[:got])
                    done, since = done + got, time.monotonic()
                    tick()
            except BrokenPipeError:
                break  # tar or zstd ended: they say why
            except OSError as error:
                trouble = f" (asking again: {error})"
            finally:
                answer.close()
        if done < size or not size:
            if time.monotonic() - since > PATIENCE:
                raise Failed(
                    f"the image cannot be fetched from {image['url']}{trouble}; is the server up, and does it have the image?"
                )
            time.sleep(1)
    return digest.hexdigest()
