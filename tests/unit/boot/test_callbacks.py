"""What of a machine's report is kept."""

from __future__ import annotations

from provisiond.boot.callbacks import text, without_secrets
from tests.golden.hosts import make_host


def test_tokens_in_a_log_are_cut_out() -> None:
    """Installers log their kernel's arguments and the commands of a preseed, both with the build's token in URLs."""
    token = "s3cret-_" * 5
    log = f"url=http://10.0.0.1:8421/boot/{token}/unattended hostname=web01\r\nwget 'http://10.0.0.1:8421/boot/{token}/built'"
    assert text({"log": log}, "log", 4096) == (
        "url=http://10.0.0.1:8421/boot/TOKEN/unattended hostname=web01\nwget 'http://10.0.0.1:8421/boot/TOKEN/built'"
    )


def test_a_hosts_secrets_are_cut_out() -> None:
    """Each line of them, wherever the machine says them; what is short or no secret stays."""
    host = make_host(
        luks_passphrase="correct horse battery", api_token="tok-1\nsecond line", pin_secret="1234", site="berlin", nested={"password": ["hunter22"]}
    )  # fmt: skip
    given = {
        "message": "cryptsetup <<< 'correct horse battery' failed at berlin 1234",
        "log": ["x second line y", "hunter22"],
    }
    assert without_secrets(given, host) == {
        "message": "cryptsetup <<< 'MASKED' failed at berlin 1234", "log": ["x MASKED y", "MASKED"],
    }  # fmt: skip
