"""Which parts of the raw file make which part of an image's stream."""

from __future__ import annotations

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from provisiond.boot.stream import byte_range, pieces
from provisiond.media.blockmap import MIB

PARTS = [(0, 2 * MIB), (5 * MIB, MIB), (11 * MIB, MIB)]
SIZE = 4 * MIB


@given(st.integers(0, SIZE - 1), st.integers(1, SIZE))
def test_pieces_are_exactly_what_was_asked(start: int, length: int) -> None:
    """Any part of the stream is made of the right bytes of the file, in order, and not one byte more."""
    length = min(length, SIZE - start)
    where: list[tuple[int, int]] = []  # (position in the stream, offset in the file) of each piece
    position = start
    for offset, count in pieces(PARTS, start, length):
        assert count > 0
        where.append((position, offset))
        position += count
    assert position == start + length
    begins = {0: 0, 2 * MIB: 5 * MIB, 3 * MIB: 11 * MIB}
    for at, offset in where:
        extent = max(b for b in begins if b <= at)
        assert offset == begins[extent] + (at - extent)


@pytest.mark.parametrize(
    ("header", "expected"),
    [("", None), ("bytes=0-0", (0, 1)), ("bytes=5-", (5, 5)), ("bytes=-3", (7, 3)), ("bytes=-30", (0, 10)), ("bytes=8-99", (8, 2)),
     ("bytes=-", None), ("bytes=a-b", None), ("bytes=0-1,3-4", None)],
)  # fmt: skip
def test_byte_range(header: str, expected: tuple[int, int] | None) -> None:
    """A Range header as (start, length) of ten bytes; what is not understood means all of it."""
    assert byte_range(header, 10) == expected


@pytest.mark.parametrize("header", ["bytes=10-", "bytes=-0", "bytes=5-4"])
def test_range_that_cannot_be(header: str) -> None:
    """A range with nothing in it is refused."""
    with pytest.raises(web.HTTPRequestRangeNotSatisfiable):
        byte_range(header, 10)
