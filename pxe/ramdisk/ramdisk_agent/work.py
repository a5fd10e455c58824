"""One piece of work from the daemon's plan: what an action is given, how it reports, and the table of actions."""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ramdisk_agent.client import Client


class Failed(Exception):
    """The work cannot be done. The message is for the operator: what happened, to which disk or URL, what to do."""


class Stopped(Exception):
    """The daemon called the work off; the message is its reason. The agent asks for the plan again."""


class Work:
    """What one action works on: `plan` is the daemon's JSON, `client` talks to the daemon."""

    def __init__(self, plan: dict[str, Any], client: "Client") -> None:
        self.plan = plan
        self.client = client

    def say(self, text: str) -> None:
        """One line for whoever watches: on the consoles and in the log."""
        self.client.log.say(text)

    def progress(self, percent: int, text: str, done: int = 0, total: int = 0) -> None:
        """Where the work is; `done` and `total` in bytes. Cheap: a thread sends the newest at least every 5 s.

        Raises Stopped when the daemon answered an earlier one with go:false.
        """
        self.client.report(self.plan["id"], percent, text, done, total)


Action = Callable[[Work], dict[str, Any]]


def _of(module: str) -> Action:
    """The action `run` of a module, which is imported only when it is wanted."""

    def action(work: Work) -> dict[str, Any]:
        run: Action = importlib.import_module(f"ramdisk_agent.{module}").action
        return run(work)

    return action


# the dict that an action returns is the result sent with done
ACTIONS: dict[str, Action] = {name: _of(name) for name in ("image", "inspect", "erase", "rescue")}
