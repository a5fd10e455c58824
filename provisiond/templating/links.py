"""What templates see as ``network``: every link of a host with its addresses, in the order in which they stand on each other.

Shape of the plan (plain dicts and lists)::

    {links: [LINK], cards: [LINK], bonds: [LINK], vlans: [LINK], bridges: [LINK], primary: name, search: [str], ipv6: auto|off}

    LINK: {name, kind: ethernet|bond|vlan|bridge, mac (of the card; of the first card below for others), mtu, boot: bool,
           addresses: [{ip, prefix, netmask, version}], dhcp4: bool, dhcp6: bool, gateway4, gateway6, dns: [str], primary: bool,
           routes: [{to, prefix, netmask, version, via, metric}] (to is an address, or "default"),
           inside: name of the bond or bridge it is a member of, or None, members: [names] (bond, bridge),
           mode, miimon, lacp_rate, hash_policy (bond), id, link (vlan), stp (bridge), up: bool (it has an address, or carries one)}

``primary`` is the link that has the default route: the one that carries the card the machine boots from. ``boot`` marks that card.
A card without a name in the inventory is called after its MAC, ``card-525400aabb01``, and families match it by MAC.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Any

from provisiond.inventory.network import Bond, Bridge, Network, Route, Vlan
from provisiond.inventory.resolve import ResolvedInterface


class LayoutError(ValueError):
    """A description that does not fit this host. ``key`` is the dotted place in it, such as network.bonds.bond0.cards."""

    def __init__(self, message: str, key: str) -> None:
        super().__init__(message)
        self.key = key


def plan_network(network: Network | None, interfaces: Sequence[ResolvedInterface]) -> dict[str, Any]:
    """The plan for a host with these cards (the primary one first). Raises LayoutError where the description names what is not there."""
    network = network or Network()
    cards = {card_name(i): i for i in interfaces}
    links: dict[str, dict[str, Any]] = {}
    said = {_find(c.card, interfaces, f"network.cards.{c.card}"): c for c in network.cards}
    for name, card in cards.items():
        links[name] = _link(name, "ethernet", said.get(name), card.mac, network) | {"boot": card.primary}
    for made in _in_order(network):
        at = f"network.{type(made).__name__.lower()}s.{made.name}"
        if made.name in links:
            raise LayoutError(f"{made.name} is the name of a network card of this host", at)
        names = (
            made.cards if isinstance(made, Bond) else made.links if isinstance(made, Bridge) else [made.link]
        )
        below = [n if n in links else _find(n, interfaces, at) for n in names]
        mac = next((links[n]["mac"] for n in below), None)
        link = _link(made.name, type(made).__name__.lower(), made, mac, network)
        if isinstance(made, Vlan):
            link |= {"id": made.id, "link": below[0]}
        else:
            link["members"] = below
            for member in below:
                if links[member]["inside"]:
                    raise LayoutError(f"{member} is in {links[member]['inside']} already", at)
                links[member]["inside"] = made.name
            if isinstance(made, Bond):
                link |= {n: getattr(made, n) for n in ("mode", "miimon", "lacp_rate", "hash_policy")}
            else:
                link["stp"] = made.stp
        links[made.name] = link
    primary = next((name for name, card in cards.items() if card.primary), next(iter(cards), ""))
    while primary and links[primary]["inside"]:
        primary = links[primary]["inside"]
    given = {name: card.addresses for name, card in said.items()} | {
        m.name: m.addresses for m in _made(network)
    }
    for name, link in links.items():
        link["primary"] = name == primary
        _settle(link, given.get(name), links, cards, network)
    _raise_what_carries(links)
    every = list(links.values())
    kinds = {f"{k}s": [x for x in every if x["kind"] == k] for k in ("bond", "vlan", "bridge")}
    return {
        "links": every, "cards": [x for x in every if x["kind"] == "ethernet"], **kinds,
        "primary": primary, "search": list(network.search), "ipv6": network.ipv6,
    }  # fmt: skip


def card_name(card: ResolvedInterface) -> str:
    """What a card is called in a plan."""
    return card.name or "card-" + card.mac.replace(":", "")


def _made(network: Network) -> list[Bond | Vlan | Bridge]:
    return [*network.bonds, *network.vlans, *network.bridges]


def _find(name: str, interfaces: Sequence[ResolvedInterface], key: str) -> str:
    for card in interfaces:
        if name in (card.name, card.mac) or (name == "primary" and card.primary) or name == card_name(card):
            return card_name(card)
    known = ", ".join(card_name(c) for c in interfaces) or "none"
    raise LayoutError(f"there is no network card or link {name!r} on this host; it has {known}", key)


def _in_order(network: Network) -> list[Bond | Vlan | Bridge]:
    """What is made, each after what it stands on; Network has refused circles."""
    waiting = {made.name: made for made in _made(network)}
    ordered: list[Bond | Vlan | Bridge] = []

    def take(name: str) -> None:
        made = waiting.pop(name, None)
        if made is None:
            return
        for below in (
            made.links if isinstance(made, Bridge) else [made.link] if isinstance(made, Vlan) else []
        ):
            take(below)
        ordered.append(made)

    for name in list(waiting):
        take(name)
    return ordered


def _link(name: str, kind: str, said: Any, mac: str | None, network: Network) -> dict[str, Any]:
    return {
        "name": name, "kind": kind, "mac": mac, "mtu": (said.mtu if said else None) or network.mtu, "boot": False,
        "addresses": [], "dhcp4": False, "dhcp6": False,
        "gateway4": None, "gateway6": None, "dns": [], "primary": False,
        "routes": [_route(r) for r in said.routes] if said else [],
        "inside": None, "members": [], "mode": None, "miimon": None, "lacp_rate": None, "hash_policy": None,
        "id": None, "link": None, "stp": False, "up": False,
        "said_gateway": said.gateway if said else None, "said_dns": said.dns if said else None,
    }  # fmt: skip


def _route(route: Route) -> dict[str, Any]:
    via = ipaddress.ip_address(route.via)
    common = {"via": route.via, "metric": route.metric, "version": via.version}
    if route.to == "default":
        return {
            "to": "default",
            "prefix": 0,
            "netmask": str(ipaddress.ip_address(0 if via.version == 4 else b"\0" * 16)),
            **common,
        }
    network = ipaddress.ip_network(route.to)
    return {
        "to": str(network.network_address), "prefix": network.prefixlen, "netmask": str(network.netmask), **common
    }  # fmt: skip


def _settle(
    link: dict[str, Any],
    given: list[str] | None,
    links: dict[str, dict[str, Any]],
    cards: dict[str, ResolvedInterface],
    network: Network,
) -> None:
    """The addresses of a link, its gateway and its name servers."""
    said_gateway, said_dns = link.pop("said_gateway"), link.pop("said_dns")
    card = _card_of(link, links, cards)
    reserved = card is not None and card.ip is not None and card.subnet is not None
    if given is None:
        if link["inside"] or (link["kind"] == "vlan" and not reserved) or _is_tagged(link, card, links):
            given = ["none"]
        elif network.mode == "static" and reserved:
            given = ["reserved"]
        else:
            asks = "dhcp6" if card is not None and ":" in (card.ip or "") else "dhcp"
            given = [asks] if link["primary"] or (card is not None and card.ip) else ["none"]
    if link["inside"] and given != ["none"]:
        raise LayoutError(
            f"{link['name']} is a member of {link['inside']} and cannot have addresses itself",
            _place(link),
        )
    dns: list[str] = []
    for address in given:
        if address == "reserved":
            if card is None or card.ip is None or card.subnet is None:
                raise LayoutError(
                    f"{link['name']} has no reserved address in the inventory; give the card one, or write dhcp",
                    _place(link),
                )
            prefix = ipaddress.ip_network(card.subnet.cidr, strict=False).prefixlen
            link["addresses"].append(_address(f"{card.ip}/{prefix}"))
            version = link["addresses"][-1]["version"]
            if link["primary"] and card.subnet.gateway:
                link[f"gateway{version}"] = card.subnet.gateway
            dns += card.subnet.dns
        elif address in ("dhcp", "dhcp6"):
            link["dhcp4" if address == "dhcp" else "dhcp6"] = True
        elif address != "none":
            link["addresses"].append(_address(address))
    if said_gateway:
        link[f"gateway{ipaddress.ip_address(said_gateway).version}"] = said_gateway
    if said_dns is not None:
        dns = said_dns
    elif network.dns is not None and link["primary"]:
        dns = network.dns
    link["dns"] = list(dict.fromkeys(dns))


def _is_tagged(
    link: dict[str, Any], card: ResolvedInterface | None, links: dict[str, dict[str, Any]]
) -> bool:
    """Whether the card's reserved address belongs to a VLAN that is described."""
    if link["kind"] == "vlan" or card is None or card.subnet is None or card.subnet.vlan is None:
        return False
    return any(other["id"] == card.subnet.vlan for other in links.values())


def _place(link: dict[str, Any]) -> str:
    """Where in the description the addresses of a link are said."""
    section = "cards" if link["kind"] == "ethernet" else f"{link['kind']}s"
    return f"network.{section}.{link['name']}.addresses"


def _address(text: str) -> dict[str, Any]:
    interface = ipaddress.ip_interface(text)
    network = interface.network
    return {
        "ip": str(interface.ip), "prefix": network.prefixlen, "netmask": str(network.netmask), "version": network.version
    }  # fmt: skip


def _card_of(
    link: dict[str, Any], links: dict[str, dict[str, Any]], cards: dict[str, ResolvedInterface]
) -> ResolvedInterface | None:
    """The card whose reserved address a link carries."""
    if link["kind"] == "ethernet":
        return cards[link["name"]]
    if link["kind"] == "vlan":
        return next(
            (c for c in cards.values() if c.subnet is not None and c.subnet.vlan == link["id"] and c.ip), None
        )
    below = [_card_of(links[m], links, cards) for m in link["members"]]
    return next((c for c in below if c is not None and c.ip), next((c for c in below if c is not None), None))


def _raise_what_carries(links: dict[str, dict[str, Any]]) -> None:
    """``up`` for what has addresses and everything below it."""

    def up(name: str) -> None:
        link = links[name]
        if not link["up"]:
            link["up"] = True
            for below in [*link["members"], *([link["link"]] if link["link"] else [])]:
                up(below)

    for name, link in links.items():
        if link["addresses"] or link["dhcp4"] or link["dhcp6"]:
            up(name)
