"""HTTP over a plain socket: one request a connection, its answer read as it comes.

HTTP/1.0 (RFC 1945) with Host, Range and If-Range: an answer to it has no chunks, so the body is what the socket gives, and an
image goes from the socket into the buffer it is written from. http.client would do, but its import (the email package) takes
0.4 s of an emulated processor, a tenth of what the agent needs until its first plan.
"""

import socket
import time

CONNECT = 10.0  # seconds to wait for a connection
HEAD = 64 * 1024  # bytes an answer's head may have


class Broken(OSError):
    """The answer did not come or ended early: worth asking again."""


def split(url: str) -> tuple[str, int, str]:
    """(host, port, path with query) of an http URL; the host of [::1] without its brackets.

    Raises ValueError for another scheme.
    """
    scheme, _, rest = url.partition("://")
    if scheme.lower() != "http":
        raise ValueError(f"{url} is not an http:// address: this ramdisk speaks HTTP only")
    authority, slash, path = rest.partition("/")
    host, port = authority, "80"
    if authority.startswith("["):
        host, _, tail = authority[1:].partition("]")
        port = tail[1:] or port
    elif ":" in authority:
        host, _, port = authority.partition(":")
    return host.replace("%25", "%"), int(port or 80), slash + path or "/"


class Answer:
    """A status, headers (names in lower case) and a body that is still to be read."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        head, begun, data = b"", b"", b""
        while not begun:
            data = connection.recv(HEAD)
            if not data:
                raise Broken("the server closed the connection without an answer")
            head += data
            if len(head) > HEAD:
                raise Broken("the answer's head is too long")
            before, begun, rest = head.partition(b"\r\n\r\n")
        lines = before.decode("latin-1").split("\r\n")
        first = lines[0].split(None, 2)
        if len(first) < 2 or not first[0].startswith("HTTP/1.") or not first[1].isdecimal():
            raise Broken(f"the answer is not HTTP: {lines[0][:80]!r}")
        self.status = int(first[1])
        self.reason = " ".join(first[1:])
        self.headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines[1:])
        }
        length = self.headers.get("content-length", "")
        self.left = int(length) if length.isdecimal() else None  # None: until the connection ends
        self._begin = memoryview(rest)

    def recv_into(self, view: memoryview) -> int:
        """Some bytes of the body into `view`; 0 at its end. Raises Broken when it ends early, TimeoutError."""
        if self.left is not None:
            view = view[: self.left]
        if not len(view):
            return 0
        if self._begin:
            got = min(len(self._begin), len(view))
            view[:got] = self._begin[:got]
            self._begin = self._begin[got:]
        else:
            got = self._socket.recv_into(view)
        if self.left is not None:
            if not got:
                raise Broken(f"the connection ended {self.left} bytes early")
            self.left -= got
        return got

    def read(self, limit: int, deadline: float) -> bytes:
        """The whole body, until `deadline` on the monotonic clock. Raises Broken when it is longer than `limit` bytes."""
        body, view = bytearray(), memoryview(bytearray(64 * 1024))
        while got := self.recv_into(view):
            body += view[:got]
            if len(body) > limit:
                raise Broken(f"the answer is longer than {limit} bytes")
            if time.monotonic() > deadline:
                raise Broken("the answer took too long")
        return bytes(body)

    def set_timeout(self, seconds: float) -> None:
        """How long each later read waits."""
        self._socket.settimeout(seconds)

    def shut(self) -> None:
        """End the connection, also under a thread that reads from it."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def close(self) -> None:
        self._socket.close()


def ask(
    method: str, url: str, headers: dict[str, str], body: bytes | None = None, timeout: float = 30
) -> Answer:
    """Send a request and read the head of its answer, which the caller closes.

    Raises OSError (Broken, TimeoutError, a refused connection) when there is none, ValueError for a wrong URL.
    """
    host, port, path = split(url)
    connection = socket.create_connection((host, port), timeout=min(CONNECT, timeout))
    try:
        connection.settimeout(timeout)
        name = f"[{host}]" if ":" in host else host
        lines = [f"{method} {path} HTTP/1.0", f"Host: {name}:{port}", "Connection: close"]
        lines += [f"{key}: {value}" for key, value in headers.items()]
        if body is not None:
            lines.append(f"Content-Length: {len(body)}")
        connection.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b""))
        return Answer(connection)
    except BaseException:
        connection.close()
        raise
