"""What the templating tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden.cloud_init import unpacked


@pytest.fixture(scope="session")
def cloud_init() -> Path | None:
    """Where cloud-init's Debian package is unpacked; None when no mirror has it."""
    return unpacked()
