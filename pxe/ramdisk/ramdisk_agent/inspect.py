"""The action inspect: what the machine is made of, then its hardware tests, then a user of its controller."""

from typing import Any

from ramdisk_agent import facts
from ramdisk_agent.work import Failed, Work

LLDP_SECONDS = 31.0  # switches announce themselves every 30 s (IEEE 802.1AB, msgTxInterval)


def action(work: Work) -> dict[str, Any]:
    """Carry out {"tests": [{name, timeout, sha256}], "bmc": {username, password} or None}. Gives {} or {"bmc": {address, mac, username}}.

    The controller is set up before the tests, which may take hours or end the machine; facts are posted again after that and
    when they are through, since a test may have been what made a DIMM or a disk go.
    """
    tests, wanted = work.plan.get("tests") or [], work.plan.get("bmc")
    if wanted:
        work.client.log.hide(wanted["password"])
    work.progress(1, "looking at the hardware")
    told = facts.gather()
    work.client.facts(told)
    result: dict[str, Any] = {}
    if wanted:
        work.progress(10, "setting up the controller")
        result["bmc"] = _set_up(wanted)
        facts.refresh()
    if told["virtual"] is None:  # no switch speaks to a virtual machine
        work.progress(15, "waiting for what the switches say")
        work.client.facts(facts.gather(lldp_seconds=LLDP_SECONDS))
    elif wanted:
        work.client.facts(facts.gather())
    if tests:
        from ramdisk_agent import checks

        checks.run_tests(work, tests, percent=(20, 95))
        work.progress(95, "looking at the hardware again")
        work.client.facts(facts.gather())
    return result


def _set_up(wanted: dict[str, str]) -> dict[str, Any]:
    from ramdisk_agent import bmc_setup
    from ramdisk_agent.facts import bmc

    if not bmc.present(told=True):
        raise Failed(
            "this machine has no controller that can be reached from the inside (no /dev/ipmi0): give its BMC by hand"
        )
    return bmc_setup.set_up(wanted["username"], wanted["password"])
