"""What of a machine's report is kept."""

from __future__ import annotations

from provisiond.boot.callbacks import text


def test_tokens_in_a_log_are_cut_out() -> None:
    """Installers log their kernel's arguments and the commands of a preseed, both with the build's token in URLs."""
    token = "s3cret-_" * 5
    log = f"url=http://10.0.0.1:8421/boot/{token}/unattended hostname=web01\r\nwget 'http://10.0.0.1:8421/boot/{token}/built'"
    assert text({"log": log}, "log", 4096) == (
        "url=http://10.0.0.1:8421/boot/TOKEN/unattended hostname=web01\nwget 'http://10.0.0.1:8421/boot/TOKEN/built'"
    )
