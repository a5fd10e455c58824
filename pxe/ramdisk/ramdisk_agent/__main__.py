"""The agent's life: who this machine is, the claim, then what the daemon plans for it, until the machine restarts."""

import os
import sys
import time
from typing import Any, NoReturn

from ramdisk_agent.client import Client, Over, Refused, Silence
from ramdisk_agent.log import LOG
from ramdisk_agent.work import ACTIONS, Failed, Stopped, Work

SECRET = (
    "/run/provisiond/secret"  # of this start of the machine: an agent that was started again goes on with it
)
PATIENCE = 1800.0  # seconds without an answer and without work before the machine restarts
REFUSED = 60.0  # seconds that a refusal stands on the console before the machine restarts
AGAIN = 5.0  # seconds before work that failed is taken up again, where the plan wants that
FACTS = 30.0  # seconds between two posts of facts
NEWS = 10.0  # seconds after a post in which nothing new is told


def arguments(line: str) -> dict[str, str]:
    """The kernel arguments that concern the agent: url, ticket, mac, serial, shell."""
    found: dict[str, str] = {}
    for word in line.split():
        name, _, value = word.partition("=")
        if name.startswith("provisiond."):
            found[name.removeprefix("provisiond.")] = value
        elif name == "BOOTIF" and value.startswith("01-"):
            found.setdefault("mac", value[3:])
    if "mac" in found:
        found["mac"] = found["mac"].lower().replace("-", ":")
    return found


def identity(mac: str | None, sys_dir: str = "/sys") -> dict[str, Any]:
    """Who this machine says it is: {"macs","serial","uuid"}; the card that was booted from comes first.

    Cards on USB are left out: management controllers show the same one with the same address on many machines.
    """
    macs = []
    net = f"{sys_dir}/class/net"
    for name in sorted(os.listdir(net)) if os.path.isdir(net) else []:
        device = os.path.realpath(f"{net}/{name}/device")
        address = _read(f"{net}/{name}/address")
        if os.path.exists(f"{net}/{name}/device") and "/usb" not in device and address and len(address) == 17:
            macs.append(address.lower())
    if mac:
        macs = [mac, *(one for one in macs if one != mac)]
    return {
        "macs": list(dict.fromkeys(macs)),
        "serial": _read(f"{sys_dir}/class/dmi/id/product_serial"),
        "uuid": _read(f"{sys_dir}/class/dmi/id/product_uuid"),
    }


def _read(path: str) -> str | None:
    try:
        with open(path, errors="replace") as file:
            return file.read().strip() or None
    except OSError:
        return None


def boot_secret(path: str = SECRET) -> str:
    """256 bits that only this start of this machine has."""
    kept = _read(path)
    if kept and len(kept) == 64:
        return kept
    made = os.urandom(32).hex()
    os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
    with os.fdopen(os.open(f"{path}.new", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(made)
    os.rename(f"{path}.new", path)
    return made


class Agent:
    """One session: plans are carried out until one of them ends it. `run` gives how the machine goes on."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.failed = ""  # id of the work that failed last
        self.told = -FACTS  # when facts were posted

    def run(self) -> str:
        """kexec, reboot or poweroff."""
        while True:
            try:
                plan = self.client.plan(PATIENCE)
                if how := self.carry_out(plan):
                    return how
            except Over as over:
                LOG.say(f"the daemon has ended this session: {over}; restarting")
                return "reboot"
            except Silence as silence:
                LOG.say(f"{silence}; restarting")
                return "reboot"
            except Refused as refused:
                LOG.say(str(refused))
                time.sleep(AGAIN)

    def carry_out(self, plan: dict[str, Any]) -> str | None:
        """One plan. Gives how the machine goes on when this was the last one."""
        LOG.console = plan.get("serial") or LOG.console
        action = plan["action"]
        if action in ("reboot", "poweroff"):
            LOG.say(f"{action}, as the daemon wants")
            return str(action)
        if action == "wait":
            self.wait(plan)
            return None
        if plan["id"] == self.failed:
            time.sleep(AGAIN)
        work = Work(plan, self.client)
        LOG.say(f"{action}")
        for secret in (plan.get("passphrase"), (plan.get("bmc") or {}).get("password")):
            LOG.hide(str(secret or ""))
        try:
            work.progress(0, action)
            if action not in ACTIONS:
                raise Failed(
                    f"this ramdisk does not know the action {action!r}: build it anew with provisionctl ramdisk build"
                )
            result = ACTIONS[action](work)
        except Stopped as stopped:
            LOG.say(f"{action} was called off: {stopped}")
            self.client.quiet()
            return None
        except (Over, Silence):
            raise
        except Failed as error:
            self.fail(plan["id"], str(error))
            return None
        except Exception as error:
            import traceback

            LOG.add(traceback.format_exc())
            why = f"{type(error).__name__}: {error}; this is an error of the ramdisk's agent, see its log"
            self.fail(plan["id"], f"{action}: {why}")
            return None
        LOG.say(f"{action} is done")
        self.client.done(plan["id"], result)
        self.failed = ""
        return str(result["finish"]) if action == "image" else None

    def fail(self, id: str, message: str) -> None:
        """Tell why the work cannot be done. The daemon decides what comes next."""
        self.failed = id
        LOG.say(f"FAILED: {message}")
        from ramdisk_agent.run import run

        run(["dmesg"], check=False)
        self.client.failed(id, message)

    def wait(self, plan: dict[str, Any]) -> None:
        """Nothing to do yet; the daemon may want to know what this machine is."""
        due = plan.get("facts") and time.monotonic() - self.told > FACTS
        if due or self.news():
            self.told = time.monotonic()
            from ramdisk_agent import facts

            try:
                host = self.client.facts(facts.gather()).get("host")
                LOG.say(f"facts were told{f': this is {host}' if host else ''}")
            except Refused as refused:
                LOG.say(f"the facts were not taken: {refused}")
            except (OSError, ValueError, LookupError, TypeError, AttributeError, Failed) as error:
                import traceback

                LOG.add(traceback.format_exc())
                LOG.say(f"the facts could not be gathered: {error}")
            return  # what comes next may be known now
        time.sleep(float(plan.get("seconds") or 5))

    def news(self) -> bool:
        """Whether the last post of facts was made without something that is there now, such as what the switch says."""
        if self.told == -FACTS or time.monotonic() - self.told < NEWS:
            return False
        from ramdisk_agent import facts

        return facts.stale()


def main(cmdline: str = "/proc/cmdline") -> NoReturn:
    """Until the machine restarts."""
    given = arguments(_read(cmdline) or "")
    from ramdisk_agent import finish

    if not given.get("url"):
        LOG.say("no provisiond.url= among the kernel's arguments: nothing to do")
        sys.exit(2)
    LOG.console = given.get("serial")
    client = Client(given["url"])
    try:
        client.claim(given.get("ticket", ""), boot_secret(), identity(given.get("mac")), PATIENCE)
    except (Refused, Silence) as error:
        LOG.say(f"{error}; restarting in {REFUSED:.0f} s")
        time.sleep(REFUSED)
        finish.go("reboot")
    LOG.say(f"this machine is {client.host}" if client.host else "this machine is not known yet")
    finish.go(Agent(client).run())


if __name__ == "__main__":
    main()
