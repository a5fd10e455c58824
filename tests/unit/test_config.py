"""Settings: what is wrong is named, all of it at once; the environment wins."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from provisiond.config import load_settings, require_boot_url
from provisiond.errors import ConfigError


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Settings of whoever runs the tests stay out."""
    for name in [name for name in os.environ if name.startswith("PROVISIOND_")]:
        monkeypatch.delenv(name)


def written(folder: Path, text: str) -> Path:
    path = folder / "provisiond.toml"
    path.write_text(text)
    return path


def refusal(path: Path | None) -> str:
    with pytest.raises(ConfigError) as refused:
        load_settings(path)
    return str(refused.value)


def test_without_a_file_there_are_defaults() -> None:
    """Every key has a default."""
    settings = load_settings()
    assert settings.server.port == 8420
    assert settings.state.key_file == Path("/var/lib/provisiond/secret.key")


def test_an_unknown_key_is_named(tmp_path: Path) -> None:
    """A misspelt key never passes in silence; the message has the file and the key."""
    path = written(tmp_path, "[boot]\nhttp_prot = 80\n")
    assert refusal(path) == f"{path}: boot.http_prot: unknown key"


def test_an_unknown_table_is_named(tmp_path: Path) -> None:
    """Nor does a misspelt table."""
    assert "bot: unknown key" in refusal(written(tmp_path, "[bot]\nhttp_port = 80\n"))


def test_everything_wrong_comes_in_one_message(tmp_path: Path) -> None:
    """Wrong type, wrong range, wrong choice and unknown key, each by its name."""
    path = written(
        tmp_path,
        '[server]\nport = "x"\n[engine]\nworkers = 0\nnosuch = 1\n[log]\nlevel = "loud"\n[boot]\nenabled = "perhaps"\n',
    )
    said = refusal(path)
    for key in ("server.port: ", "engine.workers: ", "engine.nosuch: ", "log.level: ", "boot.enabled: "):
        assert key in said
    assert said.count(";") == 4 and "\n" not in said


def test_the_environment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A variable overrides its one key and leaves the table's others."""
    path = written(tmp_path, '[server]\nport = 1111\nlisten = "192.0.2.1"\n')
    monkeypatch.setenv("PROVISIOND_SERVER__PORT", "2222")
    settings = load_settings(path)
    assert (settings.server.port, settings.server.listen) == (2222, "192.0.2.1")


@pytest.mark.parametrize("name", ["PROVISIOND_SERVER__PROT", "PROVISIOND_SEVRER__PORT"])
def test_an_unknown_variable_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the environment too a misspelt key or table is an error."""
    monkeypatch.setenv(name, "1")
    assert "unknown key" in refusal(None)


def test_other_variables_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of provisionctl begin with the same word and are no settings."""
    monkeypatch.setenv("PROVISIOND_TOKEN", "secret")
    monkeypatch.setenv("PROVISIOND_URL", "http://127.0.0.1:8420")
    load_settings()


def test_overrides_are_laid_over_the_file(tmp_path: Path) -> None:
    """A test's or flag's table wins over the file's, key by key."""
    path = written(tmp_path, "[engine]\nworkers = 3\nper_bmc = 2\n")
    settings = load_settings(path, {"engine": {"workers": 5}})
    assert (settings.engine.workers, settings.engine.per_bmc) == (5, 2)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"[server\n", "is not valid TOML"),
        (b"[server]\nport =\n", "is not valid TOML"),
        (b"[server]\nlisten = '\xff'\n", "is not valid TOML"),
    ],
)
def test_a_broken_file_is_named(tmp_path: Path, text: bytes, words: str) -> None:
    """What cannot be parsed is said with the file's name."""
    path = tmp_path / "broken.toml"
    path.write_bytes(text)
    said = refusal(path)
    assert str(path) in said and words in said


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A file that was asked for and is not there is an error, not the defaults."""
    assert refusal(tmp_path / "no.toml") == f"cannot read {tmp_path / 'no.toml'}: No such file or directory"


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ("", "sqlite:////var/lib/provisiond/provisiond.db"),
        ("sqlite:////srv/p.db", "sqlite:////srv/p.db"),
        ("postgresql://p@db/x", "postgresql+psycopg://p@db/x"),
        ("postgres://p@db/x", "postgresql+psycopg://p@db/x"),
        ("postgresql+psycopg://p@/x?host=/run/postgresql", "postgresql+psycopg://p@/x?host=/run/postgresql"),
    ],
)
def test_forms_of_the_database_url(given: str, url: str) -> None:
    """Operators write what psql takes; the driver's name is ours to know."""
    assert load_settings(overrides={"database": {"url": given}}).database_url() == url


@pytest.mark.parametrize("given", ["mysql://x/y", "provisiond.db"])
def test_another_database_is_refused(given: str) -> None:
    """The message says which there are."""
    with pytest.raises(ConfigError, match="sqlite:// or postgresql://"):
        load_settings(overrides={"database": {"url": given}}).database_url()


@pytest.mark.parametrize("key", ["tls_cert", "tls_key"])
def test_half_of_a_certificate_is_refused(tmp_path: Path, key: str) -> None:
    """With one of the two the API would speak plain HTTP without anybody noticing."""
    assert "tls_cert and tls_key go together" in refusal(written(tmp_path, f'[server]\n{key} = "/x.pem"\n'))


def test_where_machines_boot_from_must_be_known() -> None:
    """Any address is nothing a machine could be sent to."""
    with pytest.raises(ConfigError, match=r"boot\.url must say"):
        require_boot_url(load_settings())
    for boot in ({"enabled": False}, {"url": "http://192.0.2.1:8421"}, {"listen": "192.0.2.1"}):
        require_boot_url(load_settings(overrides={"boot": boot}))


def test_settings_cannot_be_changed() -> None:
    """What was checked stays as it was."""
    with pytest.raises(ValueError, match="frozen"):
        load_settings().server.port = 1
