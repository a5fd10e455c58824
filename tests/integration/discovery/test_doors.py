"""Discovery over the API and by provisionctl, as an operator does it: look, try a rule, make it, apply it, see what came of it."""

from __future__ import annotations

import json
from pathlib import Path

from provisiond.discovery.intake import take_facts
from provisiond.inventory.facts import Facts
from tests.integration.doors import open_doors
from tests.integration.test_flags_doors import ctl
from tests.machines import Lobby, server


async def test_from_racking_to_accepted(tmp_path: Path) -> None:
    """Two machines wait, a rule is tried and made, they are taken in; a profile made from one finds the other lacking."""
    async with open_doors(tmp_path) as doors:
        lobby = Lobby(doors.deps.settings, doors.deps.store, doors.deps.box)
        for n, facts in ((1, server(1)), (2, server(2, memory={"mib": 32768, "dimms": []}))):
            await take_facts(
                lobby, await lobby.boot(facts, address=f"10.0.0.{n}"), Facts.model_validate(facts)
            )
        code, out, err = await ctl(doors, "-o", "table", "discovery", "list")
        assert code == 0 and "7XK0001" in out and "64 GiB" in out and "rack1-sw1 Ethernet2" in out, err
        code, out, err = await ctl(
            doors, "-o", "table", "discovery", "rule", "create", "big", "memory.mib > 40000", "--name-pattern", "big-{{ n }}", "--dry-run"
        )  # fmt: skip
        assert "big-1" in out and "new-e4434b000201" not in out and "1 of 2 machines" in err
        assert json.loads((await ctl(doors, "discovery", "rule", "list"))[1]) == []
        code, out, err = await ctl(
            doors, "-o", "table", "discovery", "rule", "test", "-e", "memory.mib > 40000", "--why"
        )
        assert "new-e4434b000201" in out and "1 of 2 machines" in err
        code, _, err = await ctl(
            doors, "discovery", "rule", "create", "dell", "memory.mb > 1", "--name-pattern", "{{ x }}"
        )
        assert code == 1 and "no 'mb' in memory" in err and "no 'x'" in err
        code, out, err = await ctl(
            doors, "discovery", "rule", "create", "dell", "vendor == 'Dell Inc.'", "--name-pattern", "node-{{ serial | lower }}",
            "--priority", "5", "--approve", "--param", "rack=1",
        )  # fmt: skip
        assert code == 0, err
        assert json.loads(out).items() >= {"approve": True, "priority": 5, "parameters": {"rack": 1}}.items()
        code, out, err = await ctl(doors, "discovery", "apply")
        taken = [(t["name"], t["state"]) for t in json.loads(out)]
        assert taken == [("node-7xk0001", "enrolled"), ("node-7xk0002", "enrolled")], err
        code, out, err = await ctl(
            doors, "profile", "create", "r640", "--from-host", "node-7xk0001", "--expect", "memory.mib='>= 65536'", "--expect", "tpm=2.0"
        )  # fmt: skip
        assert code == 0 and json.loads(out)["expected"]["memory.mib"] == ">= 65536", err
        code, out, err = await ctl(
            doors, "host", "update", "node-7xk0002", "--profile", "r640", "--serial", "7XK0002"
        )
        assert code == 0 and json.loads(out)["profile"] == "r640", err
        _, shown = await doors.call("GET", "/hosts/node-7xk0002")
        assert shown["hardware"]["model"] == "PowerEdge R640"
        assert "memory 32 GiB, expected >= 64 GiB" in shown["hardware"]["differs"]
        assert not [said for said in shown["hardware"]["differs"] if "tpm" in said]
        code, out, err = await ctl(doors, "-o", "table", "host", "facts", "node-7xk0002")
        assert "2.12.2" in out and "memory 32 GiB, expected >= 64 GiB" in out, err
        code, out, err = await ctl(doors, "-o", "table", "host", "facts", "node-7xk0001", "--history")
        assert "first seen" in out, err
        code, out, err = await ctl(
            doors, "discovery", "rule", "update", "dell", "--disable", "--name-pattern", ""
        )
        assert json.loads(out).items() >= {"enabled": False, "name_pattern": "", "taken": 2}.items(), err
        code, out, err = await ctl(doors, "profile", "update", "r640", "--expect", "memory.mib=")
        assert "memory.mib" not in json.loads(out)["expected"], err
        assert (await doors.call("DELETE", "/profiles/r640"))[0] == 409
        assert (await doors.call("DELETE", "/discovery-rules/dell"))[0] == 204
        assert (await doors.call("GET", "/hosts/nobody/hardware"))[0] == 404
        await doors.call("POST", "/hosts", {"name": "dull", "mac": "52:54:00:00:00:99"})
        status, problem = await doors.call("GET", "/hosts/dull/hardware")
        assert status == 409 and "provisionctl host inspect dull" in problem["detail"]
        assert (await doors.call("POST", "/discovery/test", {}))[0] == 422
        await doors.call("POST", "/users", {"name": "eva", "role": "viewer"})
        _, made = await doors.call("POST", "/tokens", {"user": "eva"})
        for method, path, body, status in (
            ("GET", "/discovery", None, 200), ("POST", "/discovery/apply", {}, 403), ("GET", "/hosts/node-7xk0001/hardware", None, 200),
            ("POST", "/discovery-rules", {"name": "x", "expression": "true"}, 403), ("POST", "/discovery/test", {"expression": "true"}, 200),
        ):  # fmt: skip
            assert (await doors.call(method, path, body, token=made["token"]))[0] == status, path
