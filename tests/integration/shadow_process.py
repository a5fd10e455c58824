"""Shadow runs in a process of their own, to be killed: ``python -m tests.integration.shadow_process URL DIRECTORY --kill-after HOSTS``."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from pathlib import Path

from sqlalchemy import func, select

from provisiond.inventory.release_tables import ShadowRun
from provisiond.rollouts.shadow import ShadowRuns
from tests.integration.engine.rig import Rig


async def work(options: argparse.Namespace) -> None:
    rig = await Rig(options.url, Path(options.directory)).open()
    runs = ShadowRuns(rig.world, "first", workers=2, lease_seconds=3.0)
    await runs.start()
    while True:
        async with rig.store.connect() as connection:
            done = (await connection.execute(select(func.max(ShadowRun.done)))).scalar_one()
        if done >= options.kill_after:
            os.kill(os.getpid(), signal.SIGKILL)
        await asyncio.sleep(0.01)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("url")
    parser.add_argument("directory")
    parser.add_argument("--kill-after", type=int, required=True)
    asyncio.run(work(parser.parse_args()))
