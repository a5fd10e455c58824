"""Our own schema of network configuration version 2, which netplan, cloud-init and Ubuntu's installer read.

The keys are those of netplan's YAML reference and of cloud-init's "Networking config version 2".
"""

from __future__ import annotations

from typing import Any

from provisiond.templating.validators.schemas import (
    ANY,
    FLAG,
    NUMBER,
    TABLE,
    TEXT,
    either,
    many,
    named,
    one_of,
    table,
)
from provisiond.templating.validators.trees import Schema

_MAC = {"type": "string", "pattern": r"^([0-9a-fA-F]{2}:){5}[0-9a-fA-F]{2}$"}
_SWITCH = one_of(True, False, "yes", "no", "true", "false")
_TIME = either(NUMBER, TEXT)
_ADDRESS = {"type": "string", "pattern": r"^[0-9a-fA-F.:]+/\d{1,3}$"}
_PLAIN = {"type": "string", "pattern": r"^[0-9a-fA-F.:%a-z]+$"}
_OVERRIDES = table(
    hostname=TEXT, route_metric=NUMBER, send_hostname=FLAG, use_dns=FLAG, use_domains=either(FLAG, TEXT), use_hostname=FLAG, use_mtu=FLAG,
    use_ntp=FLAG, use_routes=FLAG,
)  # fmt: skip
_ROUTE = table(
    "to", to=TEXT, via=_PLAIN, from_=_PLAIN, on_link=FLAG, metric=NUMBER, type=TEXT, scope=TEXT, table=NUMBER, mtu=NUMBER,
    congestion_window=NUMBER, advertised_receive_window=NUMBER, advertised_mss=NUMBER,
)  # fmt: skip
_POLICY = table(from_=TEXT, to=TEXT, table=NUMBER, priority=NUMBER, mark=NUMBER, type_of_service=NUMBER)
_DEVICE: dict[str, Any] = {
    "renderer": one_of("networkd", "NetworkManager", "sriov"), "dhcp4": _SWITCH, "dhcp6": _SWITCH, "dhcp-identifier": TEXT,
    "dhcp4-overrides": _OVERRIDES, "dhcp6-overrides": _OVERRIDES, "accept-ra": _SWITCH, "ipv6-privacy": FLAG, "ipv6-mtu": NUMBER,
    "ipv6-address-generation": one_of("eui64", "stable-privacy"), "ipv6-address-token": TEXT, "link-local": many(one_of("ipv4", "ipv6")),
    "addresses": many(either(_ADDRESS, named(table(label=TEXT, lifetime=either(NUMBER, TEXT))))), "gateway4": _PLAIN, "gateway6": _PLAIN,
    "nameservers": table(addresses=many(_PLAIN), search=many(TEXT)), "macaddress": either(_MAC, one_of("permanent", "random", "stable")),
    "mtu": NUMBER, "optional": FLAG, "optional-addresses": many(TEXT), "critical": FLAG, "ignore-carrier": FLAG,
    "activation-mode": one_of("manual", "off"), "routes": many(_ROUTE), "routing-policy": many(_POLICY), "neigh-suppress": FLAG,
    "hairpin": FLAG, "port-mac-learning": FLAG,
}  # fmt: skip


def _device(required: str = "", /, **more: Any) -> dict[str, Any]:
    made = table(required, **more)
    made["properties"] = {**_DEVICE, **made["properties"]}
    return made


_PHYSICAL = _device(
    match=table(name=TEXT, macaddress=_MAC, driver=either(TEXT, many(TEXT))), set_name=TEXT, wakeonlan=FLAG, emit_lldp=FLAG,
    receive_checksum_offload=FLAG, transmit_checksum_offload=FLAG, tcp_segmentation_offload=FLAG, tcp6_segmentation_offload=FLAG,
    generic_segmentation_offload=FLAG, generic_receive_offload=FLAG, large_receive_offload=FLAG, link=TEXT, virtual_function_count=NUMBER,
    embedded_switch_mode=TEXT, delay_virtual_functions_rebind=FLAG, infiniband_mode=one_of("datagram", "connected"), auth=TABLE,
)  # fmt: skip
_BOND = _device(
    interfaces=many(TEXT),
    parameters=table(
        mode=one_of("balance-rr", "active-backup", "balance-xor", "broadcast", "802.3ad", "balance-tlb", "balance-alb"),
        lacp_rate=one_of("slow", "fast"), mii_monitor_interval=_TIME, min_links=NUMBER,
        transmit_hash_policy=one_of("layer2", "layer3+4", "layer2+3", "encap2+3", "encap3+4", "vlan+srcmac"),
        ad_select=one_of("stable", "bandwidth", "count"), all_slaves_active=FLAG, all_members_active=FLAG, arp_interval=_TIME,
        arp_ip_targets=many(TEXT), arp_validate=one_of("none", "active", "backup", "all"), arp_all_targets=one_of("any", "all"),
        up_delay=_TIME, down_delay=_TIME, fail_over_mac_policy=one_of("none", "active", "follow"), gratuitous_arp=NUMBER,
        gratuitious_arp=NUMBER, packets_per_slave=NUMBER, packets_per_member=NUMBER,
        primary_reselect_policy=one_of("always", "better", "failure"), learn_packet_interval=_TIME, resend_igmp=NUMBER, primary=TEXT,
    ),
)  # fmt: skip
_BRIDGE = _device(
    interfaces=many(TEXT),
    parameters=table(
        ageing_time=_TIME, aging_time=_TIME, priority=NUMBER, port_priority=named(NUMBER), forward_delay=_TIME, hello_time=_TIME, max_age=_TIME,
        path_cost=named(NUMBER), stp=FLAG,
    ),
)  # fmt: skip
_VLAN = _device("id link", id={"type": "integer", "minimum": 0, "maximum": 4094}, link=TEXT)

NETPLAN = table(
    "version", version={"const": 2}, renderer=one_of("networkd", "NetworkManager"), ethernets=named(_PHYSICAL), bonds=named(_BOND),
    bridges=named(_BRIDGE), vlans=named(_VLAN), wifis=named(TABLE), modems=named(TABLE), tunnels=named(TABLE), vrfs=named(TABLE),
    nm_devices=named(TABLE), dummy_devices=named(_device()), virtual_ethernets=named(_device("peer", peer=TEXT)), openvswitch=ANY,
)  # fmt: skip
NETWORK_V2 = Schema("network config version 2", NETPLAN)
