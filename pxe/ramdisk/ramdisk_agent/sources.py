"""The bytes of an image as they come from a connection: plain, or through zstd. Both give whole pieces or raise Broken."""

import fcntl
import os
import select
import subprocess
import threading
import time
from collections.abc import Callable

from ramdisk_agent.device import MIB, buffer
from ramdisk_agent.http import Answer, Broken
from ramdisk_agent.work import Failed

STALL = 30.0  # seconds without a byte before a connection is given up
TICK = 2.0  # seconds between two looks at whether the daemon called it off


def received(answer: Answer, view: memoryview, tick: Callable[[], None]) -> int:
    """Some bytes of the body; 0 at its end. Raises Broken when none came for STALL seconds."""
    until = time.monotonic() + STALL
    while True:
        try:
            return answer.recv_into(view)
        except TimeoutError:
            tick()
            if time.monotonic() > until:
                raise Broken(f"no data for {STALL:.0f} s") from None


def _skip(answer: Answer, count: int, tick: Callable[[], None]) -> None:
    """Past what is on the disk already: the server knows no ranges and sends everything."""
    view = buffer(MIB)
    while count:
        got = received(answer, view[:count], tick)
        if not got:
            raise Broken("the connection ended before what is missing")
        count -= got


def plain(
    answer: Answer, skip: int, take: Callable[[Callable[[memoryview], None]], None], tick: Callable[[], None]
) -> None:
    """Pieces as they come from the socket."""
    answer.set_timeout(TICK)
    _skip(answer, skip, tick)

    def read_full(view: memoryview) -> None:
        while view:
            got = received(answer, view, tick)
            if not got:
                raise Broken("the connection ended")
            view = view[got:]

    take(read_full)


def unpacked(
    answer: Answer, skip: int, take: Callable[[Callable[[memoryview], None]], None], tick: Callable[[], None]
) -> None:
    """Pieces as zstd makes them of the frames that come: a thread moves bytes from the socket to the program."""
    answer.set_timeout(TICK)
    _skip(answer, skip, tick)
    try:
        program = subprocess.Popen(
            ["zstd", "-dcq"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
        )
    except FileNotFoundError:
        raise Failed("zstd is not in this ramdisk: build it anew with provisionctl ramdisk build") from None
    assert program.stdin and program.stdout and program.stderr
    feed, output = program.stdin, program.stdout.fileno()
    _widen(feed.fileno(), output)
    ended: list[str] = []

    def fill() -> None:
        view = buffer(256 * 1024)
        try:
            while got := received(answer, view, lambda: None):
                part = view[:got]
                while part:
                    part = part[feed.write(part) or 0 :]
        except BrokenPipeError:
            pass  # zstd ended: its error says why
        except (OSError, ValueError) as error:
            ended.append(str(error))
        finally:
            try:
                feed.close()
            except OSError:
                pass

    def read_full(view: memoryview) -> None:
        while view:
            while not select.select([output], [], [], TICK)[0]:
                tick()
            got = os.readv(output, [view])
            if not got:
                said = stderr.strip().rpartition("\n")[2] if (stderr := _last(program)) else ""
                raise Broken(ended[0] if ended else said or "the connection ended")
            view = view[got:]

    feeder = threading.Thread(target=fill, daemon=True)
    feeder.start()
    try:
        take(read_full)
    finally:
        program.kill()
        answer.shut()
        feeder.join()
        program.stdout.close()
        program.stderr.close()
        program.wait()


def _last(program: "subprocess.Popen[bytes]") -> str:
    assert program.stderr
    return (program.stderr.read(4096) or b"").decode(errors="replace")


def _widen(*pipes: int) -> None:
    """Fewer switches between the two programs: pipes of 1 MiB where the kernel allows that."""
    for pipe in pipes:
        try:
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, MIB)
        except OSError:
            pass
