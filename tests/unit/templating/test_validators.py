"""The validators find what is wrong, and say so by name when they cannot look."""

from __future__ import annotations

from pathlib import Path

import pytest

from provisiond.templating import validators
from provisiond.templating.validators import validate


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("kickstart", "nonsense --here\n", "nonsense"),
        ("kickstart", "%packages\nvim\n", "end"),
        ("kickstart", "%post --interpreter=/bin/bash\nif true\n%end\n", "script at line 1"),
        ("preseed", "d-i partman/x\n", "parse error"),
        ("preseed", "d-i preseed/late_command string if true; then\n", "late_command"),
        ("grub-local", "if true; then\n", "error"),
        ("ipxe-local", "kernel x\n", "#!ipxe"),
        ("ipxe-local", "#!ipxe\nkernal x || goto nowhere\n", "no iPXE command 'kernal'"),
        ("ipxe-local", "#!ipxe\nboot || goto nowhere\n", "no label 'nowhere'"),
        ("pxelinux-local", "default a\nlabel b\n  localboot 0\n", "names no label"),
        ("pxelinux-local", "default a\nlabel a\n  locolboot 0\n", "no directive 'locolboot'"),
        ("user-data", "hostname: x\n", "#cloud-config"),
        ("user-data", "#cloud-config\na: [\n", "not YAML"),
        ("meta-data", "instance-id: x\n", "local-hostname is missing"),
    ],
)
def test_problems(kind: str, text: str, said: str) -> None:
    """Each broken text is found, with the place where there is one."""
    verdict = validate(kind, text)
    assert not verdict.passed and said in str(verdict), verdict


def test_cloud_init(cloud_init: Path | None) -> None:
    """cloud-init's own schema and parser refuse a wrong type and a wrong network."""
    if cloud_init is None:
        pytest.skip("apt cannot fetch the package cloud-init here")
    assert "package_update" in str(
        validate("user-data", "#cloud-config\npackage_update: [1]\n", cloud_init=cloud_init)
    )
    assert validate("user-data", "#cloud-config\npackage_update: true\n", cloud_init=cloud_init).passed
    assert validate("network-config", "version: 2\nethernets: {}\n", cloud_init=cloud_init).problems
    assert validate(
        "network-config", "version: 2\nethernets:\n  a: {dhcp4: true}\n", cloud_init=cloud_init
    ).passed
    assert validate("network-config", "version: 7\n", cloud_init=cloud_init).problems


def test_skipped_is_not_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A validator whose program is missing names it and does not pass."""
    monkeypatch.setattr(validators.shutil, "which", lambda _: None)  # type: ignore[attr-defined]
    for kind, missing in (
        ("grub-local", "grub-script-check"),
        ("preseed", "debconf-set-selections"),
        ("user-data", "cloud-init"),
    ):
        verdict = validate(kind, "#cloud-config\n{}\n")
        assert not verdict.passed and missing in verdict.skipped and "skipped" in str(verdict)
    assert "there is no validator" in validate("esxi", "x").skipped
