"""One file on its way to one TFTP client: blocks, windows, repetitions. No I/O loop of its own.

Sources: RFC 1350; RFC 1123 section 4.2.3.1 (the sorcerer's apprentice: a doubled acknowledgement never doubles data);
RFC 7440 (windowsize). Block numbers roll over from 65535 to 0, as the common clients expect.
"""

from __future__ import annotations

import os
import socket
import stat
import time
from contextlib import suppress
from pathlib import Path

from provisiond.boot import tftp_request
from provisiond.boot.tftp_request import Terms

TIMEOUT = 1.0  # seconds to the first repetition where the client asks for no other; doubles
LONGEST = 8.0  # seconds between two repetitions
TRIES = 7  # sendings of one packet: about half a minute
_CHUNK = 16 << 10  # bytes read ahead for each transfer: 500 of them shall not cost 32 MiB


class Content:
    """Bytes from memory, or of a file that is read in chunks. Raises OSError for what is no regular file."""

    def __init__(self, source: bytes | Path) -> None:
        self._fd = -1
        self._start, self._view = 0, memoryview(b"")
        if isinstance(source, bytes):
            self.size, self._view = len(source), memoryview(source)
            return
        self._fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        status = os.fstat(self._fd)
        self.size = status.st_size
        if not stat.S_ISREG(status.st_mode):
            self.close()
            raise OSError(f"{source} is not a regular file")

    def read(self, offset: int, length: int) -> memoryview:
        """The bytes there, fewer only at the end of the file. Raises OSError when the file has become shorter."""
        at = offset - self._start
        if at < 0 or at + length > len(self._view):
            if offset + length > self.size:
                length = self.size - offset
                if at >= 0 and at + length <= len(self._view):
                    return self._view[at : at + length]
            self._start, at = offset, 0
            self._view = memoryview(os.pread(self._fd, max(_CHUNK, length), offset))
            if len(self._view) < length:
                raise OSError("the file became shorter while it was read")
        return self._view[at : at + length]

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Transfer:
    """Sends ``content`` over ``sock``, which is connected to the client and does not block.

    The owner calls ``begin`` once, ``readable`` when a datagram is there and ``overdue`` once ``deadline`` (monotonic seconds)
    is past, until ``done``. Then ``failure`` says why it did not end well (empty: it did), ``sent`` counts the file's bytes that
    went out and ``repeats`` the packets sent again.
    """

    __slots__ = (
        "_acked",
        "_blocks",
        "_content",
        "_first",
        "_healed",
        "_next",
        "_pause",
        "_sock",
        "_terms",
        "_tries",
        "client",
        "deadline",
        "done",
        "failure",
        "path",
        "repeats",
        "sent",
        "touched",
    )

    def __init__(self, sock: socket.socket, content: Content, terms: Terms, path: str, client: str) -> None:
        self._sock, self._content, self._terms = sock, content, terms
        self.path, self.client = path, client
        self._blocks = content.size // terms.blksize + 1  # the last is shorter than blksize, maybe empty
        self._first = tftp_request.oack(terms) if terms.accepted else b""
        self._acked = -1 if self._first else 0  # block that is acknowledged; -1: the OACK is not
        self._next = self._acked + 1  # block to be sent next
        self._healed = -2  # acknowledgement that a window was repeated for
        self._tries, self._pause = 1, terms.timeout or TIMEOUT
        self.done, self.failure = False, ""
        self.sent = self.repeats = 0
        self.touched = time.monotonic()
        self.deadline = self.touched + self._pause

    @property
    def untouched(self) -> bool:
        """Whether the client has not answered yet."""
        return self._acked < (0 if self._first else 1)

    def begin(self) -> None:
        """Send the OACK or the first window."""
        self._send()

    def readable(self) -> None:
        """Take one datagram from the socket."""
        try:
            data = self._sock.recv(512)
        except BlockingIOError:
            return
        except OSError as problem:
            self._broken(problem)
            return
        if len(data) < 4 or data[0]:
            return
        if data[1] == 4:
            self._acknowledged(data[2] << 8 | data[3])
        elif data[1] == 5:
            # a client that asked for the size only ends like this, and so does one that has what it wants
            self._end("" if self._acked <= 0 else f"the client gave up: {_words(data[4:])}")

    def overdue(self) -> None:
        """Nothing came in time: send again, or give up."""
        if self._tries >= TRIES:
            self._end("the client no longer answers")
            return
        self._tries += 1
        self._pause = min(self._pause * 2, max(LONGEST, self._terms.timeout or 0))
        self._healed = -2
        self._again()
        self.deadline = time.monotonic() + self._pause

    def abort(self, code: int, message: str) -> None:
        """Tell the client and end."""
        if not self.done:
            with suppress(OSError):
                self._sock.send(tftp_request.error(code, message))
            self._end(message)

    def close(self) -> None:
        self._sock.close()
        self._content.close()

    # --- what comes -----------------------------------------------------------------------------------

    def _acknowledged(self, number: int) -> None:
        if self._acked < 0:
            if number:
                return
            step = 1
        else:
            step = (number - self._acked) & 0xFFFF
            if step == 0:
                # In lockstep a doubled acknowledgement means nothing. With windows it says that the window's first block
                # got lost; each of the later blocks may cause one, so that only the first counts.
                if self._terms.window > 1 and self._healed != self._acked and self._next > self._acked + 1:
                    self._healed = self._acked
                    self._again()
                return
            if step >= self._next - self._acked:
                return  # of long ago
        self._acked += step
        if self._acked >= self._blocks:
            self._end("")
            return
        if self._next > self._acked + 1:
            self.repeats += self._next - self._acked - 1
            self._healed = self._acked
            self._next = self._acked + 1  # a block inside the window got lost: go on behind what arrived
        self._tries, self._pause = 1, self._terms.timeout or TIMEOUT
        self._send()
        self.touched = time.monotonic()
        self.deadline = self.touched + self._pause

    # --- what goes ------------------------------------------------------------------------------------

    def _again(self) -> None:
        self.repeats += 1 if self._acked < 0 else self._next - self._acked - 1
        self._next = self._acked + 1
        self._send()

    def _send(self) -> None:
        """The OACK, or the blocks that the window has room for."""
        try:
            if self._acked < 0:
                self._next = 1
                self._sock.send(self._first)
                return
            blksize, block = self._terms.blksize, self._next
            last = min(self._acked + self._terms.window, self._blocks)
            while block <= last:
                data = self._content.read((block - 1) * blksize, blksize)
                self._next = block + 1  # also when the socket is full: it then counts as lost on the way
                self._sock.sendmsg((b"\0\3" + (block & 0xFFFF).to_bytes(2, "big"), data))
                self.sent += len(data)
                block += 1
        except BlockingIOError:
            pass
        except OSError as problem:
            self._broken(problem)

    def _broken(self, problem: OSError) -> None:
        if isinstance(problem, ConnectionRefusedError) and self._next > self._blocks:
            self._end("")  # the client has everything and is gone; its last acknowledgement got lost
        else:
            self._end(f"{problem.strerror or problem}")

    def _end(self, failure: str) -> None:
        if not self.done:
            self.done, self.failure = True, failure


def _words(message: bytes) -> str:
    text = message.split(b"\0", 1)[0].decode("ascii", "replace")[:80]
    return "".join(char if char.isprintable() else "?" for char in text) or "no reason given"
