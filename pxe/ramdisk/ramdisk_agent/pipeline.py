"""What was received onto the disk, and from the disk into the digest: three stages that overlap, in order, piece by piece.

The caller fills buffers; one thread writes them; another reads each piece back from the disk and hashes it. With a second
processor the check costs no time of its own.
"""

import hashlib
import threading
from collections.abc import Callable

from ramdisk_agent.device import Ranges, buffer

BUFFERS = 3


class Pipeline:
    """`pieces` has the ranges of each piece; `size` is the bytes that the largest one has."""

    def __init__(self, pieces: list[Ranges], size: int) -> None:
        self.received = self.written = self.verified = 0  # pieces
        self._pieces = pieces
        self._buffers = [buffer(size) for _ in range(BUFFERS)]
        self._back = buffer(size)
        self._digest = hashlib.sha256()
        self._moved = threading.Condition()
        self._error: BaseException | None = None
        self._threads = [
            threading.Thread(target=self._stage, args=(stage,), daemon=True)
            for stage in (self._write, self._verify)
        ]
        for thread in self._threads:
            thread.start()

    def length(self, piece: int) -> int:
        """Bytes of one piece."""
        return sum(size for _, _, size in self._pieces[piece])

    def free(self, idle: Callable[[], None]) -> memoryview:
        """Where the next piece is to be put. Raises Failed when the disk is at its end, what `idle` raises."""
        self._wait(lambda: self.received - self.written < BUFFERS, idle)
        return self._buffers[self.received % BUFFERS][: self.length(self.received)]

    def filled(self) -> None:
        """The buffer that `free` gave has the whole piece."""
        with self._moved:
            self.received += 1
            self._moved.notify_all()

    def finish(self, idle: Callable[[], None]) -> str:
        """Wait until all is written and read back: SHA-256 of what the disk has, in hex."""
        self._wait(lambda: self.verified == len(self._pieces), idle)
        return self._digest.hexdigest()

    def stop(self) -> None:
        """Nothing more is written when this returns."""
        with self._moved:
            self._error = self._error or RuntimeError("stopped")
            self._moved.notify_all()
        for thread in self._threads:
            thread.join()

    def _wait(self, ready: Callable[[], bool], idle: Callable[[], None]) -> None:
        while True:
            idle()
            with self._moved:
                if self._error:
                    raise self._error
                if ready() or (self._moved.wait(1.0) and ready()):
                    return

    def _next(self, mine: int, before: Callable[[], int]) -> bool:
        """Wait until the stage before has done piece `mine`; false at the end."""
        with self._moved:
            while mine < len(self._pieces) and before() <= mine and not self._error:
                self._moved.wait()
            return mine < len(self._pieces) and not self._error

    def _stage(self, work: Callable[[], None]) -> None:
        try:
            work()
        except BaseException as error:
            with self._moved:
                self._error = self._error or error
                self._moved.notify_all()

    def _write(self) -> None:
        while self._next(self.written, lambda: self.received):
            at, data = 0, self._buffers[self.written % BUFFERS]
            for device, offset, size in self._pieces[self.written]:
                device.write(offset, data[at : at + size])
                at += size
            with self._moved:
                self.written += 1
                self._moved.notify_all()

    def _verify(self) -> None:
        while self._next(self.verified, lambda: self.written):
            at = 0
            for device, offset, size in self._pieces[self.verified]:
                device.read(offset, self._back[at : at + size])
                at += size
            self._digest.update(self._back[:at])
            with self._moved:
                self.verified += 1
                self._moved.notify_all()
