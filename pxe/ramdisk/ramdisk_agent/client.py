"""HTTP to the daemon: claim, plan, progress, done, failed, facts. Every call is repeated until it is answered."""

from typing import Any

from ramdisk_agent.log import LOG, Log


class Client:
    """The machine's side of the daemon's door below /agent."""

    log: Log = LOG

    def __init__(self, url: str, ticket: str = "") -> None:
        """`url` is the root of the boot server, such as http://10.0.0.1:8421."""
        self.url = url.rstrip("/")

    def plan(self) -> dict[str, Any]:
        """What to do now."""
        raise NotImplementedError

    def report(self, id: str, percent: int, text: str, done: int, total: int) -> None:
        """Remember where the work is, for the thread that tells the daemon. Raises Stopped when it said go:false."""
        raise NotImplementedError

    def facts(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Post the facts of this machine."""
        return self.post("facts", facts)

    def test(self, result: dict[str, Any]) -> None:
        """Post the result of one hardware test: {"id","name","verdict","output","seconds"}."""
        self.post("test", result)

    def erased(self, record: dict[str, Any]) -> None:
        """Post the record of one disk that was erased."""
        self.post("erased", record)

    def post(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        """POST /agent/NAME until it is answered."""
        raise NotImplementedError

    def fetch(self, url: str) -> bytes:
        """The body of a small file, such as agent/test/NAME or an absolute URL. Raises Failed when there is none."""
        raise NotImplementedError
