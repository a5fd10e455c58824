"""A door to a package mirror outside, for machines inside the lab: what they ask for below a path is fetched and passed on.

with Mirror(ns, "http://deb.debian.org/debian") as mirror:
    mirror.url        # http://10.77.0.1:3142/debian
"""

from __future__ import annotations

import http.server
import threading
from http import HTTPStatus
from types import TracebackType
from urllib.parse import urlsplit

import httpx

from tests.lab.kit.netns import Netns

HERE, PORT = "10.77.0.1", 3142
PIECE = 1 << 18


class Mirror:
    """Serves ``upstream`` (URL of an http or https mirror) inside ``ns``; this process fetches from outside."""

    def __init__(self, ns: Netns, upstream: str) -> None:
        self.ns, self.upstream = ns, upstream.rstrip("/")
        self.path = urlsplit(self.upstream).path
        self.url = f"http://{HERE}:{PORT}{self.path}"
        self.missing: list[str] = []
        """Paths the mirror did not have."""
        self._client = httpx.Client(timeout=60, follow_redirects=True)

    def start(self) -> Mirror:
        mirror = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                mirror._pass_on(self, head=False)

            def do_HEAD(self) -> None:
                mirror._pass_on(self, head=True)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer((HERE, PORT), Handler, bind_and_activate=False)
        self._server.socket.close()
        self._server.socket = self.ns.listen(HERE, PORT)
        self._server.socket.setblocking(True)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()
        return self

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        self._client.close()

    def _pass_on(self, asked: http.server.BaseHTTPRequestHandler, *, head: bool) -> None:
        if not asked.path.startswith(f"{self.path}/"):
            asked.send_error(HTTPStatus.NOT_FOUND)
            return
        wanted = {name: value for name in ("Range", "If-Modified-Since") if (value := asked.headers[name])}
        wanted["Accept-Encoding"] = "identity"
        try:
            url = self.upstream + asked.path.removeprefix(self.path)
            with self._client.stream("HEAD" if head else "GET", url, headers=wanted) as answer:
                if answer.status_code == HTTPStatus.NOT_FOUND:
                    self.missing.append(asked.path)
                asked.send_response(answer.status_code)
                for name in ("Content-Length", "Content-Range", "Content-Type", "Last-Modified"):
                    if name in answer.headers:
                        asked.send_header(name, answer.headers[name])
                asked.end_headers()
                if not head:
                    for piece in answer.iter_raw(PIECE):
                        asked.wfile.write(piece)
        except httpx.HTTPError as error:
            asked.send_error(HTTPStatus.BAD_GATEWAY, str(error))
        except ConnectionError:
            pass  # the machine went away

    def __enter__(self) -> Mirror:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
