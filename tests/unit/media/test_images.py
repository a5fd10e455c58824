"""The block map: which MiB of a sparse file are used."""

from __future__ import annotations

from pathlib import Path

import pytest

from provisiond.media.fetch import MediaError
from provisiond.media.images import MIB, format_map, map_path, read_map, used_extents


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
    assert used_extents(sparse(tmp_path / "raw", 10, data)) == expected


def test_map_survives_its_file(tmp_path: Path) -> None:
    """What is written beside an image is what is read again."""
    raw = tmp_path / "a.raw"
    map_path(raw).write_text(format_map([(0, 2), (7, 1)]))
    assert read_map(raw) == [(0, 2), (7, 1)]


@pytest.mark.parametrize("text", [None, "1\n", "a b\n"])
def test_broken_map(tmp_path: Path, text: str | None) -> None:
    """An image without a usable map is refused with what to do, not served in part."""
    raw = tmp_path / "a.raw"
    if text is not None:
        map_path(raw).write_text(text)
    with pytest.raises(MediaError, match="add the image again"):
        read_map(raw)
