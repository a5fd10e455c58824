"""What YAML from operators means: no number where a MAC stands, no truth value where a word stands."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from provisiond.ctl import yaml12


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("52:54:00:00:01:01", "52:54:00:00:01:01"),
        ("1:30", "1:30"),
        ("{on: hv1, no: off}", {"on": "hv1", "no": "off"}),
        ("[true, False, yes]", [True, False, "yes"]),
        ("[1, -2, 0x10, 0o17, 010]", [1, -2, 16, 15, 10]),
        ("[1.5, -2e3, .5, 1.]", [1.5, -2000.0, 0.5, 1.0]),
        ("[1_000, 2026-11-21, 10.0.0.1]", ["1_000", "2026-11-21", "10.0.0.1"]),
        ("[~, null, '']", [None, None, ""]),
        (".inf", float("inf")),
    ],
)
def test_scalars(text: str, value: Any) -> None:
    """Scalars are read by the core schema of YAML 1.2 (section 10.3)."""
    assert yaml12.load(text) == value


def test_json_is_yaml() -> None:
    """A JSON file is read as what it is."""
    body = {"a": [1, 2.5, True, None, "x"], "mac": "52:54:00:00:00:01"}
    assert yaml12.load(json.dumps(body)) == body


def test_it_is_a_safe_loader() -> None:
    """No tag makes an object."""
    with pytest.raises(yaml.YAMLError):
        yaml12.load("!!python/object/apply:os.system ['true']")
