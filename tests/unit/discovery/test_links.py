"""What a known host takes over of the machine that reported."""

from provisiond.discovery.links import card_names
from provisiond.inventory.facts import Nic


def test_names_of_cards() -> None:
    """As the kernel gave them, each once; none that no system could keep."""
    cards = [
        Nic(mac=f"02:00:00:00:00:0{n}", name=name)
        for n, name in enumerate(("eth0", "eth0", None, "a b", "ens3"))
    ]
    assert card_names(cards) == ["eth0", "", "", "", "ens3"]
    assert card_names(cards, {"ens3", ""}) == ["eth0", "", "", "", ""]
