"""Handover to Ansible: ansible-core, through ansible-runner, in the run's own process.

Settings (host parameter ``ansible``): ``playbook`` (path below its source), ``directory`` or ``git`` with ``ref``, and optionally
``tags`` (list), ``verbosity`` (0 to 4), ``known_hosts`` (a file with the keys of other machines the playbook reaches).
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from provisiond.drivers.handover import HandoverTarget
from provisiond.drivers.handover.inventory import inventory
from provisiond.drivers.handover.job import Ended, Failure, Job
from provisiond.drivers.handover.processes import dying_with_parent, environment
from provisiond.drivers.handover.runs import Supervised, write_private
from provisiond.drivers.handover.source import check_source, fetch
from provisiond.errors import DriverRejected

_SETTINGS = {"playbook", "directory", "git", "ref", "tags", "verbosity", "known_hosts"}
_FAILED = {"runner_on_failed": "failed", "runner_on_unreachable": "could not reach the host"}
_COUNTS = {
    "ok": "ok",
    "changed": "changed",
    "failures": "failures",
    "dark": "unreachable",
    "skipped": "skipped",
    "rescued": "rescued",
    "ignored": "ignored",
}


class AnsibleHandover(Supervised):
    """The driver."""

    driver = "ansible"

    def check(self, target: HandoverTarget) -> None:
        settings = target.settings
        if not settings:
            raise DriverRejected(
                f"host {target.host} has no parameter 'ansible' that says which playbook to run, with 'directory' or 'git'"
            )
        if unknown := set(settings) - _SETTINGS:
            raise DriverRejected(
                f"host {target.host}: parameter 'ansible' has unknown keys: {', '.join(sorted(map(str, unknown)))}"
            )
        tags = settings.get("tags", [])
        if not isinstance(tags, list) or not all(isinstance(t, str) and t and "," not in t for t in tags):
            raise DriverRejected(f"host {target.host}: ansible.tags must be a list of texts")
        if settings.get("verbosity", 0) not in range(5):
            raise DriverRejected(f"host {target.host}: ansible.verbosity must be 0 to 4")
        if "known_hosts" in settings and not Path(str(settings["known_hosts"])).is_file():
            raise DriverRejected(
                f"host {target.host}: ansible.known_hosts {settings['known_hosts']} is not a file"
            )
        check_source(settings, target.host, self.sources, self.protocols)


def carry_out(job: Job) -> Ended:
    """The supervisor's part: lay out a private data directory for ansible-runner, run it, tell how each host fared."""
    import ansible_runner

    settings = job.target.settings
    project, playbook = _project(job), str(settings["playbook"])
    if (
        not (project / playbook).resolve().is_relative_to(project.resolve())
        or not (project / playbook).is_file()
    ):
        raise Failure(f"there is no playbook {playbook} in {settings.get('git') or project}")
    private = job.run / "private"
    for folder in ("inventory", "env"):
        (private / folder).mkdir(mode=0o700, exist_ok=True)
    write_private(private / "inventory" / "host.yml", inventory(job.target))
    write_private(private / "env" / "extravars", json.dumps(_extra_variables(job)))
    problems: list[str] = []
    counted: dict[str, Any] = {}

    def heard(event: Mapping[str, Any]) -> bool:
        if event.get("stdout"):
            job.say(event["stdout"].replace("\r\n", "\n").lstrip("\r\n") + "\n")
        data = event.get("event_data", {})
        if event["event"] == "playbook_on_stats":
            counted.update(data)
        if event["event"] in _FAILED and not data.get("ignore_errors"):
            problems.append(
                f"task {data.get('task', '?')!r} {_FAILED[event['event']]}: {_reason(data.get('res', {}))}"
            )
        return False

    runner = ansible_runner.interface.init_runner(
        private_data_dir=str(private), project_dir=str(project), playbook=playbook,
        inventory=str(private / "inventory"), verbosity=settings.get("verbosity") or None, tags=",".join(settings.get("tags", [])) or None,
        event_handler=heard, cancel_callback=job.stop, quiet=True, rotate_artifacts=0,
        suppress_env_files=True, envvars=_environment(job), settings={"pexpect_timeout": 1, "suppress_ansible_output": True},
    )  # fmt: skip
    runner.config.command = dying_with_parent(runner.config.command)
    runner.run()
    stats = _stats(counted)
    if runner.status == "successful":
        if not stats:
            return Ended(
                False,
                f"the playbook {playbook} has no play for host {job.target.host}; its groups are {', '.join(job.target.groups) or 'none'}",
            )
        return Ended(True, "", stats)
    return Ended(False, "; ".join(problems[:3]) or f"ansible-playbook ended with status {runner.rc}", stats)


def _project(job: Job) -> Path:
    settings = job.target.settings
    if "directory" in settings:
        return Path(settings["directory"])
    began = time.monotonic()
    try:
        tree, commit = fetch(
            settings["git"],
            settings.get("ref", "HEAD"),
            job.run.parent / ".git-cache",
            job.run,
            job.protocols,
        )
    except (RuntimeError, OSError) as error:
        raise Failure(f"cannot fetch {settings['git']}: {error}") from error
    job.say(f"{settings['git']} at {commit} in {time.monotonic() - began:.1f} s\n")
    return tree


def _ssh_arguments(job: Job) -> str:
    options = job.ssh.options()
    if extra := job.target.settings.get("known_hosts"):
        options = [o.replace(f"={job.ssh.known_hosts}", f"={job.ssh.known_hosts} {extra}") for o in options]
    return " ".join(f'"{o}"' if " " in o else o for o in options)


def _extra_variables(job: Job) -> dict[str, Any]:
    """Variables that win over every other place, so that no inventory, configuration or play turns host key checks off."""
    return {
        "ansible_ssh_args": _ssh_arguments(job),
        "ansible_ssh_common_args": "",
        "ansible_ssh_extra_args": "",
        "ansible_scp_extra_args": "",
        "ansible_sftp_extra_args": "",
        "ansible_host_key_checking": True,
        "ansible_ssh_host_key_checking": True,
    }


def _environment(job: Job) -> dict[str, str]:
    tools = str(Path(sys.executable).parent)
    path = tools if shutil.which("ansible-playbook", path=tools) else ""
    base = environment(job.run)
    return {
        **base,
        "PATH": ":".join(filter(None, (path, base["PATH"]))),
        "ANSIBLE_HOST_KEY_CHECKING": "True",
        "ANSIBLE_SSH_ARGS": _ssh_arguments(job),
        "ANSIBLE_HOME": str(job.run / "private" / "ansible"),
        "ANSIBLE_LOCAL_TEMP": str(job.run / "private" / "tmp"),
        "ANSIBLE_PIPELINING": "True",
        "ANSIBLE_NOCOLOR": "True",
        "ANSIBLE_RETRY_FILES_ENABLED": "False",
        "ANSIBLE_NOCOWS": "True",
        "ANSIBLE_DEPRECATION_WARNINGS": "False",
        "ANSIBLE_PYTHON_INTERPRETER": "auto_silent",
        "ANSIBLE_LOCALHOST_WARNING": "False",
    }


def _reason(result: Any) -> str:
    if not isinstance(result, Mapping):
        return str(result)[:300]
    if result.get("censored"):
        return "(hidden by no_log)"
    for name in ("msg", "stderr", "stdout", "reason"):
        if result.get(name):
            return str(result[name]).strip()[:300]
    return "no reason given"


def _stats(raw: Mapping[str, Any]) -> dict[str, dict[str, int]]:
    """Ansible counts by kind and then host; here by host and then kind."""
    hosts: dict[str, dict[str, int]] = {}
    for kind, name in _COUNTS.items():
        for host, count in (raw.get(kind) or {}).items():
            hosts.setdefault(host, dict.fromkeys(_COUNTS.values(), 0))[name] = count
    return hosts
