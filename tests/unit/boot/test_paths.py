"""What of a path may be logged."""

from __future__ import annotations

import pytest

from provisiond.boot.paths import without_token

TOKEN = "Zk3-_" * 8


@pytest.mark.parametrize(
    ("path", "shown"),
    [
        (f"/boot/{TOKEN}/plan", "/boot/TOKEN/plan"),
        (f"/boot/{TOKEN}", "/boot/TOKEN"),
        (f"boot/{TOKEN}/kernel", "boot/TOKEN/kernel"),
        ("/boot/ipxe/52-54-00-aa-bb-cc", "/boot/ipxe/52-54-00-aa-bb-cc"),
        (
            "quiet provisiond.ticket=Zk3-_A provisiond.mac=52",
            "quiet provisiond.ticket=TICKET provisiond.mac=52",
        ),
        ("boot/ramdisk/initrd", "boot/ramdisk/initrd"),
        ("pxelinux.cfg/01-52-54-00-aa-bb-cc", "pxelinux.cfg/01-52-54-00-aa-bb-cc"),
    ],
)
def test_token_is_cut_out(path: str, shown: str) -> None:
    """Of HTTP's paths and of TFTP's, which begin without a slash; nothing else is changed."""
    assert without_token(path) == shown
