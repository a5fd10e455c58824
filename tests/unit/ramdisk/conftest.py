"""What several tests of the agent share."""

from __future__ import annotations

import pytest

from ramdisk_agent import erasing, firmware_erase


@pytest.fixture
def no_firmware(monkeypatch: pytest.MonkeyPatch) -> list[firmware_erase.Way]:
    """What the disks can do by themselves: nothing, until a test adds to it."""
    found: list[firmware_erase.Way] = []
    monkeypatch.setattr(firmware_erase, "ways", lambda disk, alone, why: iter(found))
    monkeypatch.setattr(erasing, "OPEN_TRIES", 1)
    return found
