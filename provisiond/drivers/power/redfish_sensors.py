"""Readings of a Redfish system's chassis: the Sensors collection where there is one, else Thermal and Power.

Source: DMTF DSP0268, schemas Sensor, Thermal and Power.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from provisiond.drivers.power import Sensor
from provisiond.drivers.power.redfish_client import Client

HEALTH = {"OK": "ok", "Warning": "warning", "Critical": "critical"}
UNITS = {"Cel": "C", "RPM": "RPM", "V": "V", "W": "W", "A": "A", "%": "%"}
MOST = 512  # sensors read one by one; more than any machine has, fewer than a broken service may list


def read_sensors(client: Client, system: Any) -> list[Sensor]:
    """Every reading of the chassis the system names as its own, or of all there are."""
    links = system.json.get("Links", {}).get("Chassis") or client.json("/redfish/v1/Chassis").get(
        "Members", []
    )
    found: list[Sensor] = []
    for link in links:
        chassis = client.json(link["@odata.id"])
        if sensors := _path(chassis, "Sensors"):
            members = client.json(sensors).get("Members", [])
            found += [_sensor(client.json(member["@odata.id"])) for member in members[:MOST]]
            continue
        found += _thermal(client.json(path) if (path := _path(chassis, "Thermal")) else {})
        found += _power(client.json(path) if (path := _path(chassis, "Power")) else {})
    return found


def _sensor(item: dict[str, Any]) -> Sensor:
    unit = str(item.get("ReadingUnits") or "")
    return Sensor(
        str(item.get("Name", "")), _number(item.get("Reading")), UNITS.get(unit, unit), _health(item)
    )


def _thermal(item: dict[str, Any]) -> Iterator[Sensor]:
    for one in item.get("Temperatures", []):
        yield Sensor(_name(one), _number(one.get("ReadingCelsius")), "C", _health(one))
    for one in item.get("Fans", []):
        unit = "%" if one.get("ReadingUnits") == "Percent" else "RPM"
        yield Sensor(_name(one), _number(one.get("Reading", one.get("ReadingRPM"))), unit, _health(one))


def _power(item: dict[str, Any]) -> Iterator[Sensor]:
    for one in item.get("PowerControl", []):
        yield Sensor(_name(one), _number(one.get("PowerConsumedWatts")), "W", _health(one))
    for one in item.get("Voltages", []):
        yield Sensor(_name(one), _number(one.get("ReadingVolts")), "V", _health(one))
    for one in item.get("PowerSupplies", []):
        yield Sensor(_name(one), _number(one.get("LastPowerOutputWatts")), "W", _health(one))


def _path(item: dict[str, Any], name: str) -> str:
    return str((item.get(name) or {}).get("@odata.id", ""))


def _name(item: dict[str, Any]) -> str:
    return str(item.get("Name") or item.get("FanName") or item.get("MemberId") or "")


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _health(item: dict[str, Any]) -> str:
    status = item.get("Status") or {}
    return HEALTH.get(str(status.get("Health") or "OK"), "warning")
