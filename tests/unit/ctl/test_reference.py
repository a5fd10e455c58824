"""docs/cli-reference.md is what provisionctl says of itself."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
COMMAND = ("-m", "typer", "provisiond.ctl.app", "utils", "docs", "--name", "provisionctl")


def test_the_reference_is_up_to_date() -> None:
    """Write it anew with: python -m typer provisiond.ctl.app utils docs --name provisionctl --output docs/cli-reference.md"""
    made = subprocess.run(
        [sys.executable, *COMMAND], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert (ROOT / "docs/cli-reference.md").read_text().strip() == made.strip()
