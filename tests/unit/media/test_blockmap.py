"""The block map: which MiB of a sparse file are used."""

from __future__ import annotations

from pathlib import Path

import pytest

from provisiond.media.blockmap import MIB, BlockMap, map_path, read_map, used_extents
from provisiond.media.fetch import MediaError


def sparse(path: Path, size_mib: int, data: list[tuple[int, int]]) -> Path:
    """A file of ``size_mib`` with data at (byte offset, length) and holes elsewhere."""
    with path.open("wb") as file:
        file.truncate(size_mib * MIB)
        for offset, length in data:
            file.seek(offset)
            file.write(b"x" * length)
    return path


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ([], []),
        ([(0, 1)], [(0, 1)]),
        ([(3 * MIB + 5, 10)], [(3, 1)]),
        ([(MIB - 1, 2)], [(0, 2)]),
        ([(0, 10), (MIB // 2, 10)], [(0, 1)]),
        ([(0, MIB), (MIB + 600_000, 10)], [(0, 2)]),
        ([(0, MIB), (5 * MIB, 2 * MIB), (9 * MIB, 10)], [(0, 1), (5, 2), (9, 1)]),
    ],
)
def test_used_extents(tmp_path: Path, data: list[tuple[int, int]], expected: list[tuple[int, int]]) -> None:
    """Data anywhere in a MiB makes the whole MiB used; neighbours are joined, and none is listed twice."""
    assert used_extents(sparse(tmp_path / "raw", 10, data)) == tuple(expected)


def test_map_survives_its_file(tmp_path: Path) -> None:
    """What is written beside an image is what is read again."""
    raw = tmp_path / "a.raw"
    blocks = BlockMap(10, ((0, 2), (7, 1)), (123,))
    map_path(raw).write_text(blocks.json())
    assert read_map(raw) == blocks
    assert (blocks.used_mib, blocks.lines()) == (3, "0 2\n7 1\n")


def test_map_of_the_first_releases(tmp_path: Path) -> None:
    """An image that was added when maps were lines goes on as it is, without a compressed form."""
    raw = sparse(tmp_path / "a.raw", 10, [])
    map_path(raw).write_text("0 2\n7 1\n")
    assert read_map(raw) == BlockMap(10, ((0, 2), (7, 1)))


@pytest.mark.parametrize(
    "text",
    [
        None,
        "1\n",
        "a b\n",
        "{",
        "{}",
        '{"size_mib":9,"extents":[[0,9]],"frame_mib":8,"frames":[5]}',
        '{"size_mib":9,"extents":[[0,9]],"frame_mib":4,"frames":[]}',
    ],
)
def test_broken_map(tmp_path: Path, text: str | None) -> None:
    """An image without a usable map is refused with what to do, not served in part."""
    raw = tmp_path / "a.raw"
    if text is not None:
        map_path(raw).write_text(text)
    with pytest.raises(MediaError, match="add the image again"):
        read_map(raw)
