"""What dnsmasq is told, written out."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from provisiond.drivers.dhcp import BootOptions, DhcpOptions, DhcpSubnet, Reservation
from provisiond.drivers.dhcp.dnsmasq_config import Paths, configuration, event_script, reservation_lines
from provisiond.errors import DriverRejected

OPTIONS = DhcpOptions(run_dir=Path("/r"), interfaces=("br0",), lease_seconds=600)
NET = DhcpSubnet(
    "rack1", "10.0.0.0/24", "10.0.0.1", ("10.0.0.2",), "lab.example.org", (("10.0.0.50", "10.0.0.59"),)
)
BOOT = BootOptions(
    "10.0.0.9",
    ((0, "undionly.kpxe"), (7, "snponly.efi")),
    ((16, "http://10.0.0.9/x.efi"),),
    "http://10.0.0.9/ipxe",
)


def told(options: DhcpOptions = OPTIONS, net: DhcpSubnet = NET, boot: BootOptions = BOOT) -> str:
    return configuration(options, Paths(options.run_dir), [net], boot, user="root", group="root")


def test_the_whole_file() -> None:
    """The configuration of one subnet, as it is written."""
    assert told().splitlines() == [
        "port=0",
        "bind-interfaces",
        "except-interface=lo",
        "interface=br0",
        "user=root",
        "group=root",
        "pid-file=/r/dnsmasq.pid",
        "log-facility=-",
        "dhcp-optsdir=/r/options.d",
        "log-async=100",
        "dhcp-authoritative",
        "dhcp-ignore-clid",
        "dhcp-no-override",
        "no-ping",
        "dhcp-lease-max=65536",
        "dhcp-leasefile=/r/leases",
        "dhcp-hostsdir=/r/hosts.d",
        "dhcp-script=/r/lease-event",
        "script-on-renewal",
        "dhcp-range=set:subnet0,10.0.0.50,10.0.0.59,255.255.255.0,600",
        "dhcp-option=tag:subnet0,option:router,10.0.0.1",
        "dhcp-option=tag:subnet0,option:dns-server,10.0.0.2",
        "dhcp-option=tag:subnet0,option:domain-name,lab.example.org",
        "enable-ra",
        "dhcp-range=::,constructor:br0,ra-only",
        "ra-param=br0,60,0",
        "dhcp-match=set:ipxe,175",
        "dhcp-userclass=set:ipxe,iPXE",
        "dhcp-match=set:client-arch,option:client-arch",
        "dhcp-match=set:arch0,option:client-arch,0",
        "dhcp-match=set:arch7,option:client-arch,7",
        "dhcp-match=set:arch16,option:client-arch,16",
        "dhcp-boot=tag:!ipxe,tag:arch0,undionly.kpxe,provisiond,10.0.0.9",
        "dhcp-boot=tag:!ipxe,tag:!client-arch,undionly.kpxe,provisiond,10.0.0.9",
        "dhcp-boot=tag:!ipxe,tag:arch7,snponly.efi,provisiond,10.0.0.9",
        "dhcp-option-force=tag:!ipxe,tag:arch16,60,HTTPClient",
        "dhcp-boot=tag:!ipxe,tag:arch16,http://10.0.0.9/x.efi",
        "dhcp-boot=tag:ipxe,http://10.0.0.9/ipxe,provisiond,10.0.0.9",
    ]


def test_a_proxy_gives_no_addresses() -> None:
    """In proxy mode there is no range of addresses, no reservation, no router advertisement."""
    text = told(replace(OPTIONS, proxy=True))
    assert "dhcp-range=10.0.0.0,proxy,255.255.255.0" in text
    assert not any(word in text for word in ("hostsdir", "enable-ra", "authoritative", "option:router"))


@pytest.mark.parametrize(
    ("options", "net", "boot", "words"),
    [
        (replace(OPTIONS, interfaces=()), NET, BOOT, "dhcp.interfaces is empty"),
        (replace(OPTIONS, interfaces=("br0\nuser=x",)), NET, BOOT, "dhcp.interfaces"),
        (
            OPTIONS,
            replace(NET, domain="a,option:router,1.2.3.4"),
            BOOT,
            "subnet rack1: .* is not a domain name",
        ),
        (OPTIONS, NET, replace(BOOT, ipxe_script="http://x/a b"), "the iPXE script"),
        (OPTIONS, NET, replace(BOOT, programs=((0, "a,b"),)), "a boot program"),
    ],
)
def test_values_that_would_break_out_of_their_line_are_rejected(
    options: DhcpOptions, net: DhcpSubnet, boot: BootOptions, words: str
) -> None:
    """A comma, space or newline never becomes configuration."""
    with pytest.raises(DriverRejected, match=words):
        told(options, net, boot)


@pytest.mark.parametrize(
    ("host", "line"),
    [
        ("web01", "52:54:00:00:00:01,10.0.0.5,web01\n"),
        ("web01.example.org", "52:54:00:00:00:01,10.0.0.5,web01\n"),
        ("bad name,ignore", "52:54:00:00:00:01,10.0.0.5\n"),
    ],
)
def test_a_reservations_line(host: str, line: str) -> None:
    """The first label is the name told; what is no label is left out."""
    assert reservation_lines(Reservation("52:54:00:00:00:01", "10.0.0.5", host, "rack1")) == line


def test_the_script_quotes_its_path() -> None:
    """A directory with a space or a quote in its name is no shell code."""
    assert "exec 3<>'/r/it'\"'\"'s here/lease-events.fifo' ||" in event_script(Paths(Path("/r/it's here")))
