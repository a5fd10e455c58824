"""TFTP requests: what is answered, refused and ignored, and how options are negotiated."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisiond.boot.tftp_request import Refused, Request, Terms, clean_path, error, negotiate, oack, parse


def rrq(name: bytes, *options: bytes, mode: bytes = b"octet", opcode: bytes = b"\0\1") -> bytes:
    return opcode + b"\0".join([name, mode, *options]) + b"\0"


@pytest.mark.parametrize(
    ("datagram", "request_"),
    [
        (rrq(b"a"), Request("a")),
        (rrq(b"a", mode=b"OCTET"), Request("a")),
        (rrq(b"a", mode=b"netascii"), Request("a")),
        (rrq(b"/grub//x.cfg", b"BLKSIZE", b"1468"), Request("grub/x.cfg", (("blksize", "1468"),))),
        (rrq(b"a", b"tsize", b"0") + bytes(40), Request("a", (("tsize", "0"),))),
        (rrq(b"a", b"blksize", b"abc"), Request("a", (("blksize", "abc"),))),
    ],
)
def test_requests_that_are_served(datagram: bytes, request_: Request) -> None:
    """Names are made relative, option names lower case, padding by a ROM is cut."""
    assert parse(datagram) == request_


@pytest.mark.parametrize(
    "datagram",
    [b"", b"\0", b"\0\1" + b"a" * 1499, b"\0\3\0\1x", b"\0\4\0\1", b"\0\5\0\0x\0", b"\0\6", b"GET /"],
)
def test_datagrams_without_answer(datagram: bytes) -> None:
    """What is no request is not answered, so that nobody can make two servers talk to each other for ever."""
    assert parse(datagram) is None


@pytest.mark.parametrize(
    ("datagram", "code", "words"),
    [
        (rrq(b"a", opcode=b"\0\2"), 2, "this server is read-only"),
        (rrq(b"a", mode=b"mail"), 4, "mode must be octet"),
        (b"\0\1name-without-mode", 4, "malformed request"),
        (rrq(b"a\xff"), 4, "malformed request"),
        (rrq(b"a", b"blksize"), 4, "malformed request"),
        (rrq(b"a", b"", b"1"), 4, "malformed request"),
        (rrq(b"../etc/passwd"), 2, "the file name leads out of the tree"),
        (rrq(b"a\\..\\..\\b"), 2, "the file name leads out of the tree"),
        (rrq(b"a\nb"), 2, "the file name has control characters"),
        (rrq(b"//./"), 1, "no file name"),
    ],
)
def test_requests_that_are_refused(datagram: bytes, code: int, words: str) -> None:
    """Each with an error of RFC 1350 that says why."""
    with pytest.raises(Refused) as refused:
        parse(datagram)
    assert (refused.value.code, refused.value.message) == (code, words)


@pytest.mark.parametrize(
    ("options", "terms"),
    [
        ((), Terms()),
        ((("blksize", "1468"), ("tsize", "0")), Terms(1468, 1, None, (("blksize", 1468), ("tsize", 1000)))),
        (
            (("tsize", "0"), ("blksize", "65465")),
            Terms(65464, 1, None, (("tsize", 1000), ("blksize", 65464))),
        ),
        ((("blksize", "7"),), Terms()),
        ((("blksize", "abc"), ("timeout", "3")), Terms(512, 1, 3, (("timeout", 3),))),
        ((("timeout", "0"), ("windowsize", "0")), Terms()),
        ((("timeout", "256"), ("windowsize", "-4")), Terms()),
        ((("windowsize", "16"),), Terms(512, 16, None, (("windowsize", 16),))),
        ((("windowsize", "65535"),), Terms(512, 64, None, (("windowsize", 64),))),
        (
            (("blksize", "65464"), ("windowsize", "9")),
            Terms(65464, 2, None, (("blksize", 65464), ("windowsize", 2))),
        ),
        ((("blksize", "٣٢"), ("multicast", "1"), ("x", "y")), Terms()),
    ],
)
def test_options_are_negotiated(options: tuple[tuple[str, str], ...], terms: Terms) -> None:
    """Values out of range and unknown options are left out, too large ones lowered."""
    assert negotiate(Request("a", options), 1000) == terms


def test_datagrams_that_are_sent() -> None:
    """OACK and ERROR byte for byte."""
    assert oack(Terms(accepted=(("tsize", 5), ("blksize", 1468)))) == b"\0\6tsize\x005\0blksize\x001468\0"
    assert error(1, "no such file") == b"\0\5\0\1no such file\0"


@given(
    st.binary(max_size=600),
    st.sampled_from([b"", b"\0\1", b"\0\2", b"\0\1a\0octet\0", b"\0\1a\0octet\0blksize\0"]),
)
def test_any_datagram_is_answered_refused_or_ignored(tail: bytes, head: bytes) -> None:
    """Whatever comes in, nothing but Refused comes out, and a served path stays inside."""
    try:
        request = parse(head + tail)
    except Refused as refused:
        assert len(error(refused.code, refused.message)) < 100
        return
    if request is not None:
        assert ".." not in request.path.split("/") and not request.path.startswith("/")
        terms = negotiate(request, 10)
        assert 8 <= terms.blksize <= 65464 and 1 <= terms.window <= 64
        if terms.accepted:
            assert oack(terms).startswith(b"\0\6")


@given(st.text(max_size=40))
def test_clean_paths_are_stable(name: str) -> None:
    """Cleaning a clean path changes nothing."""
    try:
        path = clean_path(name)
    except Refused:
        return
    assert clean_path(path) == path
