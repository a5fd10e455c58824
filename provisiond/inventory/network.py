"""The network description: bonds, VLANs and bridges over a host's cards, said once per host or group, rendered by every family.

    {mode: static | dhcp, ipv6: auto | off, mtu: 1500, search: [example.org], dns: [10.0.0.53],
     cards: [{card: eth1, addresses: [none], mtu: 9000}],
     bonds: [{name: bond0, cards: [eth0, eth1], mode: 802.3ad, addresses: [reserved]}],
     vlans: [{name: bond0.20, id: 20, link: bond0, addresses: [10.9.0.21/24], routes: [{to: 10.0.0.0/8, via: 10.9.0.1}]}],
     bridges: [{name: br0, links: [bond0.20], addresses: [dhcp]}]}

``card`` is the name of one of the host's interfaces, its MAC, or ``primary``. An address is ``reserved`` (what the host holds in
the inventory for that card, for the first card of a bond or bridge, or for the card whose subnet has that VLAN), ``dhcp``,
``dhcp6``, ``none``, or an address with its prefix length. Without a description each card has its reserved address, or DHCP.
"""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from provisiond.inventory.fields import DomainName, Ip, WrongPlaces, described

# IFNAMSIZ of the Linux kernel is 16 with the NUL; no slash or blank, and not "." or ".." (net/core/dev.c, dev_valid_name)
_LINK = re.compile(r"[a-z][a-z0-9_.-]{0,14}")
WORDS = ("reserved", "dhcp", "dhcp6", "none")
BOND_MODES = (
    "active-backup",
    "802.3ad",
    "balance-rr",
    "balance-xor",
    "broadcast",
    "balance-tlb",
    "balance-alb",
)


def _link(text: str) -> str:
    if not _LINK.fullmatch(text):
        raise ValueError(
            f"{text!r} is not a name of a link: 1 to 15 of a-z, 0-9, '_', '.' and '-', beginning with a letter"
        )
    return text


def _card(text: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9_.:-]{1,32}", text):
        raise ValueError(f"{text!r} is not the name or MAC of a network card")
    return text.lower() if ":" in text else text


def _address(text: str) -> str:
    if text in WORDS:
        return text
    try:
        if "/" not in text:
            raise ValueError("no prefix length")
        return str(ipaddress.ip_interface(text))
    except ValueError:
        raise ValueError(
            f"{text!r} is not an address such as 10.0.0.5/24, nor one of {', '.join(WORDS)}"
        ) from None


def _network(text: str) -> str:
    if text == "default":
        return text
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        raise ValueError(f"{text!r} is not a network such as 10.0.0.0/8 or 'default' ({error})") from None


LinkName = Annotated[str, AfterValidator(_link)]
CardName = Annotated[str, AfterValidator(_card)]
Address = Annotated[str, AfterValidator(_address)]
Mtu = Annotated[int, Field(ge=576, le=9216)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Route(_Part):
    """``to`` a network or ``default``, ``via`` a gateway on the link."""

    to: Annotated[str, AfterValidator(_network)]
    via: Ip
    metric: Annotated[int, Field(ge=0, le=1 << 31)] | None = None

    @model_validator(mode="after")
    def _one_family(self) -> Self:
        if (
            self.to != "default"
            and ipaddress.ip_network(self.to).version != ipaddress.ip_address(self.via).version
        ):
            raise ValueError(f"{self.to} and {self.via} are not of one family of addresses")
        return self


class _Link(_Part):
    """What every link may say. ``addresses`` left out: reserved or DHCP by ``mode`` where nothing stands on it, else none."""

    addresses: Annotated[list[Address], Field(max_length=32)] | None = None
    gateway: Ip | None = None
    dns: list[Ip] | None = None
    mtu: Mtu | None = None
    routes: Annotated[list[Route], Field(max_length=256)] = Field(default_factory=list)

    @model_validator(mode="after")
    def _addresses_fit(self) -> Self:
        given = self.addresses or []
        if "none" in given and len(given) > 1:
            raise ValueError("'none' stands alone in addresses")
        if len(set(given)) < len(given):
            raise ValueError("an address is given twice")
        return self


class Card(_Link):
    card: CardName


class Bond(_Link):
    """Several cards as one (Documentation/networking/bonding); ``miimon`` in milliseconds."""

    name: LinkName
    cards: Annotated[list[CardName], Field(min_length=1, max_length=16)]
    mode: Literal[
        "active-backup", "802.3ad", "balance-rr", "balance-xor", "broadcast", "balance-tlb", "balance-alb"
    ] = "active-backup"
    miimon: Annotated[int, Field(ge=0, le=60_000)] = 100
    lacp_rate: Literal["slow", "fast"] | None = None
    hash_policy: Literal["layer2", "layer2+3", "layer3+4", "encap2+3", "encap3+4", "vlan+srcmac"] | None = (
        None
    )

    @model_validator(mode="after")
    def _options_fit(self) -> Self:
        if self.lacp_rate and self.mode != "802.3ad":
            raise ValueError(f"{self.name}: lacp_rate is for mode 802.3ad")
        if self.hash_policy and self.mode not in ("802.3ad", "balance-xor", "balance-tlb"):
            raise ValueError(f"{self.name}: hash_policy is for modes 802.3ad, balance-xor and balance-tlb")
        return self


class Vlan(_Link):
    """A tagged network over ``link``: the name of a bond or bridge, or a card."""

    name: LinkName
    id: Annotated[int, Field(ge=1, le=4094)]
    link: CardName


class Bridge(_Link):
    """A bridge over ``links``: names of bonds and VLANs, or cards."""

    name: LinkName
    links: list[CardName] = Field(default_factory=list, max_length=32)
    stp: bool = False


class Network(_Part):
    """A network description. ValueErrors name every contradiction at once."""

    mode: Literal["static", "dhcp"] = "static"
    ipv6: Literal["auto", "off"] = "auto"
    mtu: Mtu | None = None
    dns: list[Ip] | None = None
    search: list[DomainName] = Field(default_factory=list)
    cards: Annotated[list[Card], Field(max_length=64)] = Field(default_factory=list)
    bonds: Annotated[list[Bond], Field(max_length=16)] = Field(default_factory=list)
    vlans: Annotated[list[Vlan], Field(max_length=256)] = Field(default_factory=list)
    bridges: Annotated[list[Bridge], Field(max_length=64)] = Field(default_factory=list)

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        made: list[Bond | Vlan | Bridge] = [*self.bonds, *self.vlans, *self.bridges]
        names = [link.name for link in made]
        problems = [f"{n} is named twice" for n in sorted({n for n in names if names.count(n) > 1})]
        cards = [c.card for c in self.cards]
        problems += [f"card {n} is described twice" for n in sorted({n for n in cards if cards.count(n) > 1})]
        users: dict[str, str] = {}
        for name, members in [(b.name, b.cards) for b in self.bonds] + [
            (b.name, b.links) for b in self.bridges
        ]:
            for member in members:
                if member in users:
                    problems.append(f"{member} is in {users[member]} and in {name}")
                users.setdefault(member, name)
        problems += [f"{b.name}: {m} is no card" for b in self.bonds for m in b.cards if m in names]
        tags = [(v.link, v.id) for v in self.vlans]
        problems += [
            f"VLAN {i} of {link} is described twice"
            for link, i in sorted({t for t in tags if tags.count(t) > 1})
        ]
        problems += self._circles()
        if problems:
            raise WrongPlaces([("", problem) for problem in dict.fromkeys(problems)])
        return self

    def _circles(self) -> list[str]:
        below: dict[str, list[str]] = {v.name: [v.link] for v in self.vlans} | {
            b.name: list(b.links) for b in self.bridges
        }
        for start in below:
            seen: set[str] = set()
            waiting = list(below[start])
            while waiting:
                at = waiting.pop()
                if at == start:
                    return [f"{start} stands on itself"]
                if at not in seen:
                    seen.add(at)
                    waiting += below.get(at, [])
        return []


NetworkDescription = Annotated[dict[str, Any], AfterValidator(described(Network))]
