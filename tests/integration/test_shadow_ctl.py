"""provisionctl release shadow, against a whole daemon on a real socket."""

from __future__ import annotations

import json
from pathlib import Path

from tests.fleet import TEMPLATES, add_release, populate
from tests.integration.test_cli import running


async def test_a_release_is_tried_from_the_command_line(tmp_path: Path) -> None:
    """Begun, waited for, shown with its differences; it ends with 1 where hosts would fail; viewers may look but not begin."""
    async with running(tmp_path) as lab:
        store = lab.daemon.world.store
        await add_release(store, TEMPLATES, current=True)
        await populate(store, 9)
        changed = {**TEMPLATES, "preseed.cfg.j2": TEMPLATES["preseed.cfg.j2"] + "# more\n"}
        good = await add_release(store, changed)
        broken = {**TEMPLATES, "kickstart.ks.j2": TEMPLATES["kickstart.ks.j2"] + "# {{ host.colour }}\n"}
        await add_release(store, broken)
        assert good

        ended = await lab.ctl("release", "shadow", "3")
        assert ended.code == 0, ended.err
        assert "9 of 9 hosts: 6 unchanged, 3 changed, 0 failing" in ended.out
        assert "3 hosts change preseed.cfg.j2" in ended.out
        assert "+# more" in ended.out

        failing = await lab.ctl("release", "shadow", "4", "--group", "redhat", "--no-validate")
        assert failing.code == 1, failing.err
        assert "3 hosts would fail kickstart.ks.j2" in failing.out
        assert "kickstart.ks.j2:21: 'host.colour' is missing" in failing.out
        assert "--no-validate was said" in failing.out

        runs = json.loads((await lab.ctl("-o", "json", "release", "shadow", "list")).out)
        assert [(r["number"], r["group"], r["state"]) for r in runs] == [
            (2, "redhat", "done"),
            (1, None, "done"),
        ]
        shown = json.loads((await lab.ctl("-o", "json", "release", "shadow", "show", "1")).out)
        assert shown["work"]["size"] > shown["work"]["size_before"] > 0
        hosts = await lab.ctl(
            "-o", "json", "release", "shadow", "show", "1", "--hosts", "--outcome", "changed"
        )
        assert len(json.loads(hosts.out)) == 3
        digest = shown["differences"][0]["digest"]
        same = await lab.ctl(
            "-o", "json", "release", "shadow", "show", "1", "--hosts", "--difference", digest
        )
        assert json.loads(same.out) == json.loads(hosts.out)

        late = await lab.ctl("release", "shadow", "cancel", "1")
        assert late.code == 1
        assert "shadow run 1 is done, not running" in late.err
        assert (await lab.ctl("release", "shadow", "99")).code == 1
        viewer = json.loads((await lab.ctl("-o", "json", "user", "create", "eve", "--role", "viewer")).out)
        assert viewer["role"] == "viewer"
        token = json.loads((await lab.ctl("-o", "json", "token", "create", "--user", "eve")).out)["token"]
        denied = await lab.ctl("release", "shadow", "3", PROVISIOND_TOKEN=token, PROVISIOND_TOKEN_FILE="")
        assert denied.code == 4
