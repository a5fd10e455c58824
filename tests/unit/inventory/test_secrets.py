"""The key file: made once with mode 0600, refused when others can read it."""

from __future__ import annotations

import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from provisiond.errors import ConfigError
from provisiond.inventory.secrets import SecretBox


def test_first_start_makes_the_file(tmp_path: Path) -> None:
    """With mode 0600 and nothing left beside it; the second start reads it."""
    path = tmp_path / "state" / "secret.key"
    token = SecretBox.open(path).encrypt("geheim")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert SecretBox.open(path).decrypt(token) == "geheim"
    assert [p.name for p in path.parent.iterdir()] == ["secret.key"]


def test_two_first_starts_agree(tmp_path: Path) -> None:
    """Whoever makes the file first wins; everybody uses that key."""
    path = tmp_path / "secret.key"
    with ThreadPoolExecutor(8) as pool:
        boxes = list(pool.map(SecretBox.open, [path] * 8))
    for box in boxes:
        assert box.decrypt(boxes[0].encrypt("x")) == "x"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644])
def test_a_file_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    """And the message says how to mend it."""
    path = tmp_path / "secret.key"
    SecretBox.open(path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        SecretBox.open(path)


@pytest.mark.parametrize("content", [b"", b"nonsense\n", b"\xff\xfe\n"])
def test_a_broken_file_is_refused(tmp_path: Path, content: bytes) -> None:
    """It is never replaced by a new key: that would lose every password."""
    path = tmp_path / "secret.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match="no valid key"):
        SecretBox.open(path)
    assert path.read_bytes() == content


def test_another_key_does_not_open_it(tmp_path: Path) -> None:
    """A secret of a lost key is a clear error that holds no secret."""
    token = SecretBox.open(tmp_path / "a").encrypt("geheim")
    with pytest.raises(ConfigError, match="put back the key file"):
        SecretBox.open(tmp_path / "b").decrypt(token)


def test_nothing_shows_the_keys(tmp_path: Path) -> None:
    """repr has the path only."""
    box = SecretBox.open(tmp_path / "a")
    assert (tmp_path / "a").read_text().strip() not in repr(box)
    assert box.encrypt("") == "" and box.decrypt("") == ""
