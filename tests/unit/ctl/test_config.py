"""Where provisionctl finds the daemon and its token."""

from __future__ import annotations

from pathlib import Path

import pytest

from provisiond.ctl.config import DEFAULT_URL, SettingsError, load_target


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user without any settings; returns where their file would be."""
    for name in ("PROVISIOND_URL", "PROVISIOND_TOKEN", "PROVISIOND_TOKEN_FILE", "PROVISIOND_CA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PROVISIONCTL_CONFIG", str(tmp_path / "provisionctl.toml"))
    monkeypatch.setattr("provisiond.ctl.config.LOCAL_TOKEN", tmp_path / "admin.token")
    return tmp_path


def test_the_daemon_on_this_machine(tmp_path: Path) -> None:
    """Without settings, the local daemon and the token its first start wrote."""
    (tmp_path / "admin.token").write_text("local\n")
    target = load_target()
    assert (target.url, target.token) == (DEFAULT_URL, "local")


def test_the_environment_wins_over_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Option, then environment, then file."""
    (tmp_path / "tok").write_text("from file\n")
    (tmp_path / "provisionctl.toml").write_text(f'url = "https://a/"\ntoken_file = "{tmp_path / "tok"}"\n')
    assert (load_target().url, load_target().token) == ("https://a", "from file")
    monkeypatch.setenv("PROVISIOND_URL", "http://b")
    monkeypatch.setenv("PROVISIOND_TOKEN", "from environment")
    assert (load_target().url, load_target().token) == ("http://b", "from environment")
    assert load_target("http://c").url == "http://c"


def test_a_token_in_a_file_for_all_is_refused(tmp_path: Path) -> None:
    """A file that holds a token must be its owner's alone."""
    path = tmp_path / "provisionctl.toml"
    path.write_text('token = "t"\n')
    path.chmod(0o644)
    with pytest.raises(SettingsError, match="chmod 600"):
        load_target()
    path.chmod(0o600)
    assert load_target().token == "t"


def test_what_is_wrong_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No token, an unknown key, a token file that is not there: each a sentence that names it."""
    with pytest.raises(SettingsError, match="PROVISIOND_TOKEN_FILE"):
        load_target()
    (tmp_path / "provisionctl.toml").write_text('urll = "x"\n')
    with pytest.raises(SettingsError, match="unknown key urll"):
        load_target()
    (tmp_path / "provisionctl.toml").unlink()
    monkeypatch.setenv("PROVISIOND_TOKEN_FILE", "/nowhere")
    with pytest.raises(SettingsError, match="/nowhere"):
        load_target()


def test_a_token_is_in_no_repr() -> None:
    """What is printed by accident tells no secret."""
    from provisiond.ctl.config import Target

    assert "s3cret" not in repr(Target("http://a", "s3cret"))
