"""The agent's HTTP: addresses, and answers that are not what they should be."""

import socket
import threading
from collections.abc import Callable

import pytest

from ramdisk_agent.http import Answer, Broken, ask, split


def test_addresses() -> None:
    """Host, port and path, of names and of IPv4 and IPv6 addresses."""
    assert split("http://10.0.0.1:8421/a/b?c=d") == ("10.0.0.1", 8421, "/a/b?c=d")
    assert split("http://boot.example.test") == ("boot.example.test", 80, "/")
    assert split("http://[2001:db8::1]:8421/agent/plan") == ("2001:db8::1", 8421, "/agent/plan")
    assert split("http://[fe80::1%25eth0]/x") == ("fe80::1%eth0", 80, "/x")
    with pytest.raises(ValueError, match="speaks HTTP only"):
        split("https://boot.example.test/")


def answered(
    raw: bytes, read: Callable[[Answer], bytes], family: int = socket.AF_INET
) -> tuple[bytes, bytes]:
    """(what the client makes of a raw answer, the request that came)."""
    with socket.socket(family) as server:
        server.bind(("::1" if family == socket.AF_INET6 else "127.0.0.1", 0))
        server.listen()
        seen: list[bytes] = []

        def serve() -> None:
            peer, _ = server.accept()
            with peer:
                seen.append(peer.recv(65536))
                peer.sendall(raw)

        thread = threading.Thread(target=serve)
        thread.start()
        host = "[::1]" if family == socket.AF_INET6 else "127.0.0.1"
        try:
            answer = ask(
                "GET", f"http://{host}:{server.getsockname()[1]}/x", {"Range": "bytes=5-"}, timeout=30
            )
            try:
                return read(answer), seen[0]
            finally:
                answer.close()
        finally:
            thread.join()


def whole(answer: Answer) -> bytes:
    """The body, at most 100 bytes of it."""
    return answer.read(100, float("inf"))


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_body_with_and_without_length(family: int) -> None:
    """A body ends with its length or with the connection; what comes after its length is not of it."""
    try:
        body, request = answered(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloXX", whole, family)
    except OSError as error:
        pytest.skip(f"no such address family here: {error}")
    assert body == b"hello"
    assert request.startswith(b"GET /x HTTP/1.0\r\nHost: ") and b"\r\nRange: bytes=5-\r\n" in request
    assert answered(b"HTTP/1.0 200\r\n\r\nall of it", whole, family)[0] == b"all of it"


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "closed the connection without an answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Le", "closed the connection without an answer"),
        (b"SSH-2.0-OpenSSH_9.2\r\n\r\n", "is not HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello", "ended 4 bytes early"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + b"x" * 101, "longer than 100 bytes"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 70000, "head is too long"),
    ],
)
def test_wrong_answers(raw: bytes, why: str) -> None:
    """Each is told as what it is, and is worth asking again."""
    with pytest.raises(Broken, match=why):
        answered(raw, whole)
