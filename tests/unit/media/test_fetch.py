"""Which sources are refused before anything is fetched."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from provisiond.media.fetch import MediaError, check_url, copy_file, refuse_address

FORBIDDEN = [
    "file:///etc/shadow",
    "ftp://mirror/debian",
    "http:///no-host",
    "http://169.254.169.254/latest/meta-data",
    "http://[fd00:ec2::254]/",
    "http://[fe80::1]/",
    "http://[::ffff:169.254.169.254]/",
    "http://100.100.100.200/",
    "http://0.0.0.0/",
    "https://user:secret@mirror/debian",
]


@pytest.mark.parametrize("url", FORBIDDEN)
def test_url_is_refused(url: str) -> None:
    """Other schemes, link-local and metadata addresses and URLs with passwords are no media sources."""
    with pytest.raises(MediaError) as refused:
        check_url(url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "url", ["http://deb.debian.org/debian", "https://10.0.0.1/x", "http://127.0.0.1:3142/debian"]
)
def test_url_is_taken(url: str) -> None:
    """A mirror by name, in a private network, or beside the daemon is fine."""
    assert check_url(url) == url


def test_resolved_address_is_refused() -> None:
    """A harmless name that stands for a metadata address is refused by what it stands for."""
    with pytest.raises(MediaError, match="metadata"):
        refuse_address("169.254.169.254", "mirror.example")
    refuse_address("192.0.2.1", "mirror.example")


@pytest.mark.parametrize("kind", ["device", "pipe", "folder"])
def test_only_regular_files_are_copied(tmp_path: Path, kind: str) -> None:
    """/dev/zero never ends and a pipe never comes: both are refused at once, and nothing hangs."""
    source = {"device": Path("/dev/zero"), "pipe": tmp_path / "pipe", "folder": tmp_path}[kind]
    if kind == "pipe":
        os.mkfifo(source)
    with pytest.raises(MediaError):
        copy_file(source, tmp_path / "out", limit=1 << 20, what="copy", on_progress=lambda *_: None)


def test_limit_of_a_copy(tmp_path: Path) -> None:
    """A file past the limit is refused by its size, before it fills the disk."""
    source = tmp_path / "big"
    with source.open("wb") as file:
        file.truncate(3 << 20)
    with pytest.raises(MediaError, match="larger than 2 MiB"):
        copy_file(source, tmp_path / "out", limit=2 << 20, what="copy", on_progress=lambda *_: None)
    assert not (tmp_path / "out").exists() or (tmp_path / "out").stat().st_size == 0
