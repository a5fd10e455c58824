"""What tables print."""

from __future__ import annotations

import pytest

from provisiond.ctl.output import Format, show_list


@pytest.mark.parametrize("column", ["at", "created_at", "step_since", "window_until"])
def test_moments_are_short_in_tables_and_whole_in_json(
    column: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every moment looks alike in tables; programs get all of it."""
    items = [{column: "2026-02-03T04:05:06.789012Z"}]
    show_list(items, [column], Format.TABLE)
    assert "2026-02-03 04:05:06" in (said := capsys.readouterr().out) and "789" not in said
    show_list(items, [column], Format.JSON)
    assert "2026-02-03T04:05:06.789012Z" in capsys.readouterr().out
