"""Golden files: ``--regen`` writes them anew; cloud-init's package is fetched once for its validators."""

from __future__ import annotations

import pytest

from provisiond.templating.validators import cloud_init


def pytest_addoption(parser: pytest.Parser) -> None:
    """``pytest tests/golden --regen`` writes the golden files anew."""
    parser.addoption("--regen", action="store_true", help="write golden files anew")


@pytest.fixture(scope="session", autouse=True)
def cloud_init_package() -> None:
    """cloud-init's Debian package is unpacked where the validators look for it; they say so where no mirror has it."""
    cloud_init.fetch()
