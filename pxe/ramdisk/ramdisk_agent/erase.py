"""Action erase: every fixed disk but those that are to be kept, all at once, each by the best way it has (``erasing``)."""

import queue
import time
from collections.abc import Sequence
from typing import Any

from ramdisk_agent import firmware_erase
from ramdisk_agent.disks import Disk, kept, list_disks
from ramdisk_agent.drivers import settle
from ramdisk_agent.erasing import Erasing, Record
from ramdisk_agent.wipe import stop
from ramdisk_agent.work import Failed, Work


def action(work: Work) -> dict[str, Any]:
    """Erase as the plan says. Raises Failed, which names every disk that was not erased; Stopped."""
    mode = str(work.plan.get("mode") or "auto")
    if mode not in ("auto", "quick", "full"):
        raise Failed(f"this ramdisk knows no way to erase that is called {mode!r}")
    settle(lambda: work.progress(0, "waiting for the drivers of the disks"))
    disks = list_disks()
    apart = kept(disks, work.plan.get("keep") or ())
    for disk in apart:
        work.say(f"{disk} is kept")
    gone = [disk for disk in disks if disk not in apart]
    if not disks:
        raise Failed(
            "this machine shows no fixed disk: its controller may lack a driver in this ramdisk, or its disks were taken out; "
            "mend that, or release it with --erase none"
        )
    stop(gone)
    if tests := work.plan.get("tests"):
        from ramdisk_agent.checks import run_tests  # costs memory and time where nobody asked for tests

        run_tests(work, tests, disks=[disk.path for disk in gone], percent=(0, 10))
    erase_all(work, gone, disks, mode)
    return {"disks": len(gone), "kept": [disk.path for disk in apart]}


def erase_all(work: Work, gone: Sequence[Disk], disks: Sequence[Disk], mode: str) -> None:
    """Erase ``gone`` of ``disks`` at the same time and tell each as it ends. Raises Failed, Stopped."""
    records: queue.Queue[Record] = queue.Queue()
    jobs = [
        Erasing(
            disk, mode, not any(firmware_erase.together(disk, other) for other in disks if other != disk), records.put
        )
        for disk in gone
    ]  # fmt: skip
    for job in jobs:
        job.thread.start()
    try:
        while any(job.thread.is_alive() for job in jobs) or not records.empty():
            _report(work, jobs)
            try:
                record = records.get(timeout=0.5)
            except queue.Empty:
                continue
            disk = record["disk"]
            outcome = "erased" if record["verified"] else f"not erased: {record['message']}"
            work.say(f"{disk['path']} {disk['serial'] or ''}: {record['method']}: {outcome}")
            work.client.erased({"id": work.plan["id"], **record})
    except BaseException:
        for job in jobs:
            job.stopped.set()
        until = time.monotonic() + 20
        for job in jobs:
            job.thread.join(max(0.0, until - time.monotonic()))
        raise
    if failed := [job.error for job in jobs if job.error]:
        done = len(jobs) - len(failed)
        raise Failed(
            f"{len(failed)} of {len(jobs)} disks were not erased ({done} were): {'; '.join(failed)}. Replace or destroy them; then retry, "
            "or release with --erase none"
        )


def _report(work: Work, jobs: Sequence[Erasing]) -> None:
    done, total = sum(job.done for job in jobs), sum(job.total for job in jobs)
    text = ", ".join(f"{job.disk.name} {job.doing} {_percent(job)}".rstrip() for job in jobs)
    work.progress(min(99, 100 * done // max(1, total)), text[:256], done, total)


def _percent(job: Erasing) -> str:
    return f"{100 * job.done // job.total} %" if job.thread.is_alive() and job.done and job.total else ""
