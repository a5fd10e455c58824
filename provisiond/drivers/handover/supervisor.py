"""The process that carries out one run: ``python -m provisiond.drivers.handover.supervisor DIRECTORY``.

It outlives the daemon that started it. It waits for SSH, does the driver's part, keeps the time limit, and writes the result
last. When it is told to end (SIGTERM) it ends everything it started; when it is killed, what it started dies with it or is
found by its mark and ended by the daemon.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import traceback
from importlib import import_module
from pathlib import Path
from types import FrameType
from typing import BinaryIO, cast

from provisiond.drivers.handover import HandoverTarget, RunState
from provisiond.drivers.handover.job import Ended, Failure, Job
from provisiond.drivers.handover.processes import boot_id, end_all
from provisiond.drivers.handover.runs import write_private, write_result
from provisiond.drivers.handover.ssh import LoginRefused, Stopped, WrongHostKey


def main() -> None:
    """Carry out the job in the directory named by the first argument."""
    run = Path(sys.argv[1])
    described = json.loads((run / "job.json").read_text())
    os.set_inheritable(
        described["lock"], False
    )  # this process alone holds it, so it is free when this process is gone
    given = described["target"]
    target = HandoverTarget(
        **given | {"host_keys": tuple(given["host_keys"]), "groups": tuple(given["groups"])}
    )
    signals = _Signals()
    deadline = time.monotonic() + target.timeout
    write_private(run / "begun", json.dumps({"pid": os.getpid(), "boot_id": boot_id()}))
    os.environ.pop("PYTHONPATH", None)
    with (run / "output").open("ab", buffering=0) as output:
        job = Job(
            run,
            target,
            tuple(described["protocols"]),
            cast(BinaryIO, output),
            deadline,
            lambda: signals.asked,
        )
        try:
            ended = _carry_out(job, described["driver"])
        finally:
            end_all(run, but=frozenset({os.getpid()}))
    state, message = (RunState.SUCCEEDED if ended.ok else RunState.FAILED), ended.message
    if not ended.ok and signals.asked:
        state, message = RunState.CANCELLED, "cancelled"
    elif not ended.ok and time.monotonic() > deadline:
        message = f"not done after {target.timeout:g} s" + (f" ({message})" if message else "")
    write_result(run, state, message, ended.stats)


class _Signals:
    """Notes that the run shall end; from its making on, nothing else than SIGKILL ends this process by itself."""

    def __init__(self) -> None:
        self.asked = False
        signal.signal(signal.SIGTERM, self._ask)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True


def _carry_out(job: Job, driver: str) -> Ended:
    target = job.target
    master: subprocess.Popen[str] | None = None
    try:
        job.ssh.prepare()
        master = job.ssh.wait(job.stop, job.say)
        carry_out = import_module(f"provisiond.drivers.handover.{driver}").carry_out
        ended: Ended = carry_out(job)
        return ended
    except WrongHostKey as error:
        return Ended(
            False,
            f"another machine than host {target.host} answers at {target.address}: its SSH host key is not the one it told ({error})",
        )
    except LoginRefused as error:
        return Ended(
            False,
            f"host {target.host} does not let user {target.user} in with provisiond's SSH key ({error})",
        )
    except Stopped as error:
        return Ended(False, f"waited for SSH on {target.address}: {error}")
    except Failure as error:
        return Ended(False, str(error))
    except Exception as error:
        traceback.print_exc()
        return Ended(False, f"{type(error).__name__}: {error}")
    finally:
        if master is not None:
            master.terminate()
            master.wait()


if __name__ == "__main__":
    main()
