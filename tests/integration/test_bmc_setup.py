"""A user of a real controller (OpenIPMI's ipmi_sim), made by ipmitool and then used to log in; facts of the same controller.

ipmitool speaks over the network here, where the ramdisk has /dev/ipmi0: the commands are the same ones.
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from ramdisk_agent import bmc_setup
from ramdisk_agent.facts import bmc
from ramdisk_agent.log import LOG
from ramdisk_agent.work import Failed
from tests.lab.kit.fixtures import need
from tests.lab.kit.ipmisim import MAC, IpmiSim
from tests.lab.kit.netns import Netns

HERE, PORT = "10.77.0.1", 6298
PASSWORD, OTHER = "Zufall16=zeichen", "Ander$zeichen-77"

pytestmark = [pytest.mark.xdist_group("power"), pytest.mark.timeout(120)]


@pytest.fixture(scope="module")
def sim() -> Iterator[IpmiSim]:
    """A controller in a namespace of its own."""
    need("ip", "ipmi_sim", "ipmitool")
    with Netns(addresses=("10.77.0.1/24",)) as ns, IpmiSim(ns, port=PORT) as running:
        yield running


def tool(sim: IpmiSim, username: str, password: str) -> list[str]:
    """ipmitool with a login, up to its command."""
    return [
        "ip", "netns", "exec", sim.ns.name, "ipmitool", "-I", "lanplus", "-C", "3", "-L", "ADMINISTRATOR",
        "-H", HERE, "-p", str(PORT), "-U", username, "-P", password,
    ]  # fmt: skip


def may_log_in(sim: IpmiSim, username: str, password: str) -> bool:
    """Whether this user may do what the daemon does."""
    done = subprocess.run([*tool(sim, username, password), "chassis", "power", "status"], capture_output=True)
    return done.returncode == 0


@pytest.fixture
def admin(sim: IpmiSim) -> list[str]:
    """ipmitool as the machine's own interface would have it: with every right."""
    return tool(sim, sim.username, sim.password)


def test_a_controller_is_told_of(admin: list[str]) -> None:
    """Its address is found on the channel that has one."""
    told = bmc.gather(admin)
    assert told["bmc"] == {"address": HERE, "mac": MAC, "version": "9.08"}
    assert bmc.gather(["false"]) == {"bmc": None, "fru": {}}


def test_a_user_is_made_and_gets_a_new_password(sim: IpmiSim, admin: list[str], tmp_path: Path) -> None:
    """The user may log in as administrator; made again it keeps its slot, and only the new password counts."""
    made = bmc_setup.set_up("provisiond", PASSWORD, admin, str(tmp_path / "run"))
    assert made == {"address": HERE, "mac": MAC, "username": "provisiond"}
    assert may_log_in(sim, "provisiond", PASSWORD)
    bmc_setup.set_up("provisiond", OTHER, admin, str(tmp_path / "run"))
    assert may_log_in(sim, "provisiond", OTHER) and not may_log_in(sim, "provisiond", PASSWORD)
    listing = subprocess.run([*admin, "-c", "user", "list", "1"], capture_output=True, text=True).stdout
    assert [line for line in listing.splitlines() if ",provisiond," in line] == [
        "4,provisiond,true,true,true,ADMINISTRATOR"
    ]


def test_twenty_bytes_are_set_whole(admin: list[str], tmp_path: Path) -> None:
    """More than 16 bytes go in IPMI 2.0's longer form (this controller compares them all, though its login takes 16)."""
    bmc_setup.set_up("longer", "Zwanzig!zeichen+lang", admin, str(tmp_path))
    listing = subprocess.run([*admin, "-c", "user", "list", "1"], capture_output=True, text=True).stdout
    slot, _ = bmc_setup.free_slot(listing, "longer")
    compared = subprocess.run(
        [*admin, "user", "test", str(slot), "20", "Zwanzig!zeichen+lang"], capture_output=True
    )
    assert compared.returncode == 0


def test_the_password_is_seen_by_nobody(admin: list[str], tmp_path: Path) -> None:
    """It is not among the arguments, not in the log, and no file of it stays."""
    seen = tmp_path / "seen"
    watch = ["sh", "-c", f'echo "$@" >>{seen}; exec "$@"', "sh", *admin]
    bmc_setup.set_up("provisiond", "geheim-geheim-77", watch, str(tmp_path / "run"))
    assert "exec" in seen.read_text() and "geheim-geheim-77" not in seen.read_text()
    assert "geheim-geheim-77" not in LOG.text()
    assert list((tmp_path / "run").iterdir()) == []
    assert (tmp_path / "run").stat().st_mode & 0o077 == 0


def test_a_refusal_is_told(
    sim: IpmiSim, admin: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A controller that does not take the password, or has no LAN channel, fails with what to do."""
    monkeypatch.setattr(bmc_setup, "PAUSE", 0.05)
    deaf = ["sh", "-c", 'case " $* " in *" exec /"*) echo no >&2; exit 1;; esac; exec "$@"', "sh", *admin]
    with pytest.raises(Failed, match=r"the controller refused: .*no") as failure:
        bmc_setup.set_up("provisiond", PASSWORD, deaf, str(tmp_path))
    assert PASSWORD not in str(failure.value) and list(tmp_path.iterdir()) == []
    lying = ["sh", "-c", 'case " $* " in *" exec /"*) exit 0;; esac; exec "$@"', "sh", *admin]
    with pytest.raises(Failed, match="did not take the password"):
        bmc_setup.set_up("provisiond", PASSWORD, lying, str(tmp_path))
    with pytest.raises(Failed, match="no LAN channel"):
        bmc_setup.set_up("provisiond", PASSWORD, ["false"], str(tmp_path))


@pytest.mark.parametrize(
    ("username", "password", "says"),
    [("a b", PASSWORD, "cannot be a user"), ("x" * 17, PASSWORD, "cannot be a user"), ("", PASSWORD, "cannot be a user"),
     ("provisiond", "x" * 21, "password cannot be set"), ("provisiond", "with blank", "password cannot be set"),
     ("provisiond", "has#comment", "password cannot be set"), ("provisiond", "two\nlines", "password cannot be set")],
)  # fmt: skip
def test_what_cannot_be_set_is_not_tried(username: str, password: str, says: str, tmp_path: Path) -> None:
    """Names over 16 bytes, passwords over 20, and what ipmitool would read as something else."""
    with pytest.raises(Failed, match=says) as failure:
        bmc_setup.set_up(username, password, ["/no/such/program"], str(tmp_path))
    assert password not in str(failure.value)


def test_slots() -> None:
    """The user's own slot, else the first empty one after the anonymous user's; none is told with who is there."""
    listing = "ID,Name\n1,,true,false\n2,ADMIN,true,true\n3,,true,false\n4,provisiond,true,true\n"
    assert bmc_setup.free_slot(listing, "provisiond") == (4, "provisiond")
    assert bmc_setup.free_slot(listing, "other") == (3, "")
    with pytest.raises(Failed, match="ADMIN"):
        bmc_setup.free_slot("1,,true\n2,ADMIN,true\n", "provisiond")
