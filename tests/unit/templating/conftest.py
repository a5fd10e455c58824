"""What the templating tests share."""

from __future__ import annotations

import pytest

from provisiond.templating.validators import cloud_init


@pytest.fixture(scope="session")
def cloud_init_package() -> None:
    """cloud-init's Debian package, unpacked where the validators look for it."""
    if cloud_init.fetch() is None:
        pytest.skip("apt cannot fetch the package cloud-init here")
