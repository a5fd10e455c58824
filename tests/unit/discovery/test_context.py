"""What rules see of a machine: the subnet it was seen in, and the cards that identify it."""

from provisiond.discovery.context import real_cards, subnet_of
from provisiond.inventory.facts import Facts
from provisiond.inventory.tables import Subnet


def test_the_subnet_a_machine_was_seen_in() -> None:
    """The narrowest; IPv4 within IPv6 is IPv4."""
    rows = [
        Subnet(name=name, cidr=cidr)
        for name, cidr in (("a", "10.0.0.0/8"), ("b", "10.1.0.0/16"), ("c", "2001:db8::/64"))
    ]
    assert [getattr(subnet_of(a, rows), "name", None) for a in ("10.1.2.3", "10.2.0.1", "::ffff:10.1.0.1", "fe80::1%eth0", "2001:db8::5", "x")] == [
        "b", "a", "b", None, "c", None,
    ]  # fmt: skip


def test_cards_that_identify() -> None:
    """The card that booted comes first; doubles of it and cards over USB are none, but where the machine booted from it."""
    facts = Facts.model_validate({"nics": [
        {"name": "bond0", "mac": "02:00:00:00:00:01", "driver": "bonding"}, {"name": "a", "mac": "02:00:00:00:00:01", "driver": "igb"},
        {"name": "b", "mac": "02:00:00:00:00:02", "driver": "igb"}, {"name": "usb0", "mac": "02:00:00:00:00:03", "driver": "cdc_ether"},
        {"name": "ib0", "mac": None, "driver": "ib_ipoib"}, {"name": "c", "mac": "02:00:00:00:00:02", "driver": "igb"}]})  # fmt: skip
    assert [nic.name for nic in real_cards(facts, "02:00:00:00:00:02")] == ["c", "a"]
    assert [nic.name for nic in real_cards(facts, "02:00:00:00:00:03")] == ["usb0", "a", "b"]
