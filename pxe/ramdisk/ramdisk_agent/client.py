"""The daemon's door below /agent: claim, plan, progress, done, failed, facts. Every call is repeated until it is answered.

The daemon may restart and the network may be gone for minutes: only an answer counts. All calls may be repeated harmlessly.
"""

import json
import threading
import time
from collections.abc import Callable
from typing import Any

from ramdisk_agent.http import Broken, ask
from ramdisk_agent.log import LOG, Log
from ramdisk_agent.work import Failed, Stopped

EVERY = 2.0  # seconds between two reports of progress; the daemon expects one in 5 s
ANSWER = 16 << 20  # bytes an answer may have: the block map of a large image
LONGEST_PAUSE = 10.0
AGAIN = {408, 425, 429}  # answers below 500 that are worth asking again
OVER = {401, 403, 410}


class Over(Exception):
    """The daemon knows this session no more: the machine restarts and begins anew."""


class Silence(Exception):
    """The daemon has not answered for as long as the caller wanted to wait."""


class Refused(Failed):
    """The daemon answered, and not with what was asked for; asking again would not help."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class Client:
    """One session with the daemon. `hold` is called between two tries of a call, with the reason of the first."""

    log: Log = LOG

    def __init__(self, url: str) -> None:
        """`url` is the root of the boot server, such as http://10.0.0.1:8421."""
        self.url = url.rstrip("/")
        self.host: str | None = None  # name of the host that this machine is, when it is known
        self._bearer = ""
        self._lock = threading.Lock()  # held while progress is sent, so that none comes after done
        self._newest: dict[str, Any] | None = None
        self._wake = threading.Event()
        self._stopped: dict[str, str] = {}
        self._over = ""
        self._reporter: threading.Thread | None = None

    # --- calls ---------------------------------------------------------------------------------------
    def claim(self, ticket: str, secret: str, identity: dict[str, Any], patience: float) -> None:
        """Begin the session. Raises Refused with 403 or 409 when this machine may not have it; Silence."""
        for hidden in (ticket, secret):
            self.log.hide(hidden)
        body = {"ticket": ticket, "secret": secret, "identity": identity, "version": 1}
        answer = self._call("POST", "agent/claim", body, patience)
        self.host = answer.get("host")
        self.log.hide(str(answer["session"]))
        self._bearer = f"{answer['session']}:{secret}"

    def plan(self, patience: float) -> dict[str, Any]:
        """What to do now. Raises Over; Silence after `patience` seconds without an answer."""
        plan: dict[str, Any] = self._call("GET", "agent/plan", patience=patience)
        return plan

    def post(self, name: str, body: dict[str, Any]) -> dict[str, Any]:
        """POST /agent/NAME until it is answered. Raises Refused, Over."""
        answer: dict[str, Any] = self._call("POST", f"agent/{name}", body)
        return answer

    def facts(self, facts: dict[str, Any]) -> dict[str, Any]:
        """Post the facts of this machine."""
        return self.post("facts", facts)

    def test(self, result: dict[str, Any]) -> None:
        """Post the result of one hardware test: {"id","name","verdict","output","seconds"}."""
        self.post("test", result)

    def erased(self, record: dict[str, Any]) -> None:
        """Post the record of one disk that was erased."""
        self.post("erased", record)

    def done(self, id: str, result: dict[str, Any]) -> None:
        """The work is done; its log goes first, since the daemon may end the session with this."""
        self.quiet()
        self.upload_log(id)
        self.post("done", {"id": id, "result": result})

    def failed(self, id: str, message: str) -> None:
        """The work cannot be done."""
        self.quiet()
        self.upload_log(id)
        tail = self.log.text(64 * 1024).encode()[-64 * 1024 :].decode(errors="ignore")
        self.post("failed", {"id": id, "message": self.log.cleaned(message), "log": tail})

    def upload_log(self, id: str) -> None:
        """The whole log. A daemon that does not want it is no reason to stop."""
        text = self.log.text().encode()[-256 * 1024 :].decode(errors="ignore")
        try:
            self.post("log", {"id": id, "text": text})
        except Refused as error:
            self.log.add(f"the log was not taken: {error}")

    def fetch(self, url: str, idle: Callable[[], None] | None = None) -> bytes:
        """The body of a small file: an absolute URL, or a path below the daemon's root such as agent/rescue.

        Repeated like every call; `idle` is called between two tries and may raise. Raises Refused when there is none.
        """
        return self._answer("GET", self._absolute(url), None, None, idle)

    def fetch_json(self, url: str, idle: Callable[[], None] | None = None) -> Any:
        """The same, read as JSON. Raises Refused when it is none."""
        body = self.fetch(url, idle)
        try:
            return json.loads(body)
        except ValueError as error:
            raise Refused(f"{self._absolute(url)} is not JSON: {error}", 200) from None

    def headers_for(self, url: str) -> dict[str, str]:
        """The proof of this session, for the daemon only."""
        ours = self._bearer and url.startswith(self.url + "/")
        return {"Authorization": f"Bearer {self._bearer}"} if ours else {}

    def _absolute(self, url: str) -> str:
        return url if "://" in url else f"{self.url}/{url.lstrip('/')}"

    def _call(
        self, method: str, path: str, body: dict[str, Any] | None = None, patience: float | None = None
    ) -> Any:
        data = None if body is None else json.dumps(body).encode()
        answer = self._answer(method, f"{self.url}/{path}", data, patience, None)
        try:
            return json.loads(answer or b"{}")
        except ValueError:
            raise Refused(f"{self.url}/{path} answered with something that is not JSON", 200) from None

    def _answer(
        self,
        method: str,
        url: str,
        data: bytes | None,
        patience: float | None,
        idle: Callable[[], None] | None,
    ) -> bytes:
        began, tries = time.monotonic(), 0
        while True:
            try:
                return self._once(method, url, data, 30)
            except OSError as error:  # Broken, TimeoutError, refused, unreachable
                why = str(error)
            except ValueError as error:
                raise Refused(f"{method} {url}: {error}", 0) from None
            silent = time.monotonic() - began
            if patience is not None and silent > patience:
                raise Silence(f"{url} has not answered for {silent / 60:.0f} minutes: {why}")
            tries += 1
            if tries in (1, 5) or tries % 30 == 0:
                self.log.say(f"no answer from {url}: {why}; asking again")
            _pause(min(LONGEST_PAUSE, 0.5 * 2 ** min(tries, 5)), idle)

    def _once(self, method: str, url: str, data: bytes | None, timeout: float) -> bytes:
        headers = self.headers_for(url)
        if data is not None:
            headers["Content-Type"] = "application/json"
        answer = ask(method, url, headers, data, timeout)
        try:
            body = answer.read(ANSWER, time.monotonic() + 4 * timeout)
        finally:
            answer.close()
        if answer.status < 300:
            return body
        said = _said(body)
        if answer.status >= 500 or answer.status in AGAIN:
            raise Broken(f"{answer.reason} {said}")
        ours = url.startswith(f"{self.url}/agent/") and not url.endswith("/claim")
        if ours and answer.status in OVER:
            raise Over(said or answer.reason)
        raise Refused(f"{method} {url} was answered with {answer.reason}: {said}", answer.status)

    # --- progress --------------------------------------------------------------------------------------
    def report(self, id: str, percent: int, text: str, done: int, total: int) -> None:
        """Remember where the work is, for the thread that tells the daemon. Raises Stopped after a go:false, Over."""
        if self._over:
            raise Over(self._over)
        if id in self._stopped:
            raise Stopped(self._stopped[id])
        first = self._newest is None
        self._newest = {
            "id": id,
            "percent": percent,
            "text": self.log.cleaned(text)[:256],
            "done": done,
            "total": total,
        }
        if self._reporter is None:
            self._reporter = threading.Thread(target=self._reports, name="progress", daemon=True)
            self._reporter.start()
        if first:
            self._wake.set()

    def quiet(self) -> None:
        """No more progress of the present work; returns when the last report is through."""
        with self._lock:
            self._newest = None
            self._stopped.clear()

    def _reports(self) -> None:
        said = ""  # a daemon that is gone for minutes must not push the rest out of the log
        while not self._over:
            self._wake.wait(EVERY)
            self._wake.clear()
            with self._lock:
                newest = self._newest
                if newest is None:
                    continue
                try:
                    answer = json.loads(
                        self._once("POST", f"{self.url}/agent/progress", json.dumps(newest).encode(), 10)
                    )
                except (OSError, ValueError, Failed) as error:
                    if str(error) != said:
                        said = str(error)
                        self.log.add(f"progress was not taken: {said}")
                except Over as over:
                    self._over = str(over)
                else:
                    if answer.get("go") is False:
                        self._stopped[newest["id"]] = str(answer.get("why") or "the daemon called it off")


def _said(body: bytes) -> str:
    """The reason in a refusal: {"error": ...}, or the text as it is."""
    try:
        return str(json.loads(body)["error"])[:500]
    except (ValueError, LookupError, TypeError):
        return body[:300].decode(errors="replace").strip()


def _pause(seconds: float, idle: Callable[[], None] | None) -> None:
    """Sleep; `idle` is called about every second and may end it by raising."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if idle:
            idle()
        time.sleep(min(1.0, left))
