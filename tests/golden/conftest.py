"""Golden files: ``--regen`` writes them anew; cloud-init's package is fetched once for its validators."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.golden.cloud_init import unpacked


def pytest_addoption(parser: pytest.Parser) -> None:
    """``pytest tests/golden --regen`` writes the golden files anew."""
    parser.addoption("--regen", action="store_true", help="write golden files anew")


@pytest.fixture(scope="session")
def cloud_init() -> Path | None:
    """Where cloud-init's Debian package is unpacked; None when no mirror has it."""
    return unpacked()
