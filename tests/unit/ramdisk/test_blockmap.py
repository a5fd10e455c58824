"""Block maps: what fits the plan, where pieces belong, what must be zeros."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ramdisk_agent.blockmap import Map
from ramdisk_agent.device import MIB, Device, Ranges, Target
from ramdisk_agent.work import Failed


def target() -> Target:
    """A disk that is never opened."""
    device = object.__new__(Device)

    def locate(offset: int, size: int) -> Ranges:
        return [(device, offset, size)]

    return Target("/dev/vda", [], locate)


def read(extents: list[tuple[int, int]], size: int = 1000, piece: int = 8, **image: Any) -> Map:
    """A map that fits its plan, but for what is given."""
    used = sum(count for _, count in extents)
    plan = {"map": "http://d/map", "used_mib": used, "encoding": "raw", **image}
    return Map(plan, {"size_mib": size, "extents": extents, "frame_mib": piece, "frames": []})


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(1, 30)), min_size=1, max_size=12), st.integers(1, 16)
)
def test_pieces_and_gaps_cover_the_image(steps: list[tuple[int, int]], piece: int) -> None:
    """Every MiB is in one piece or in one gap, in order; all pieces but the last are whole."""
    at, extents = 0, list[tuple[int, int]]()
    for gap, count in steps:
        if extents and not gap:
            gap = 1
        extents.append((at + gap, count))
        at += gap + count
    blocks = read(extents, at + 3, piece)
    pieces = blocks.pieces(target())
    sizes = [sum(size for _, _, size in ranges) for ranges in pieces]
    assert all(size == piece * MIB for size in sizes[:-1]) and 0 < sizes[-1] <= piece * MIB
    covered = [(offset, size) for ranges in pieces for _, offset, size in ranges]
    assert covered == sorted(covered)
    total = sorted(covered + blocks.gaps())
    end = 0
    for offset, size in total:
        assert offset == end
        end = offset + size
    assert end == (at + 3) * MIB


@pytest.mark.parametrize(
    ("extents", "image", "why"),
    [
        ([], {}, "not in order"),
        ([(5, 2), (3, 1)], {}, "not in order"),
        ([(0, 3), (2, 2)], {}, "not in order"),
        ([(999, 2)], {}, "end after the image"),
        ([(0, 2)], {"used_mib": 3}, "speaks of 2 MiB, the plan of 3"),
        ([(0, 2)], {"encoding": "zstd"}, "0 zstd frames for 2 MiB"),
    ],
)
def test_maps_that_are_wrong(extents: list[tuple[int, int]], image: dict[str, Any], why: str) -> None:
    """They are told before anything is written."""
    with pytest.raises(Failed, match=why):
        read(extents, **image)
    with pytest.raises(Failed, match="cannot be read"):
        Map({"map": "m", "used_mib": 1, "encoding": "raw"}, {"extents": 5})
