"""A target's ``options``: text by name, checked before anything is sent."""

from __future__ import annotations

from collections.abc import Collection

from provisiond.drivers.power import PowerTarget
from provisiond.errors import DriverRejected

_FLAGS = {
    "true": True,
    "yes": True,
    "1": True,
    "on": True,
    "false": False,
    "no": False,
    "0": False,
    "off": False,
}


class Options:
    """The options of one target. Raises DriverRejected for a name not in ``known`` and for a value of the wrong kind."""

    def __init__(self, target: PowerTarget, known: Collection[str]) -> None:
        self._host = target.host
        self._given = dict(target.options)
        if unknown := sorted(set(self._given) - set(known)):
            raise DriverRejected(
                f"{target.host}: unknown BMC option {', '.join(unknown)}; this driver knows {', '.join(sorted(known))}"
            )

    def text(self, name: str, default: str = "", choices: Collection[str] = ()) -> str:
        """The option as it stands."""
        value = str(self._given.get(name, default))
        if choices and value not in choices:
            raise self._wrong(name, value, f"one of {', '.join(choices)}")
        return value

    def number(self, name: str, default: float, low: float, high: float) -> float:
        """The option as a number from ``low`` to ``high``."""
        value = str(self._given.get(name, default))
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if not low <= number <= high:
            raise self._wrong(name, value, f"a number from {low:g} to {high:g}")
        return number

    def flag(self, name: str, default: bool) -> bool:
        """The option as yes or no."""
        value = str(self._given.get(name, default)).lower()
        if value not in _FLAGS:
            raise self._wrong(name, value, "true or false")
        return _FLAGS[value]

    def _wrong(self, name: str, value: str, wanted: str) -> DriverRejected:
        return DriverRejected(f"{self._host}: BMC option {name} is {value!r} but must be {wanted}")
