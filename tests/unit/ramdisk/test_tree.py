"""A root file system in a tar, unpacked as it comes from a server that breaks off."""

import hashlib
import os
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from ramdisk_agent import tree
from ramdisk_agent.work import Failed


class Work:
    """What the agent's work is to a transfer: it hears progress, and sends no headers of its own."""

    def __init__(self) -> None:
        self.client, self.heard = self, list[tuple[int, str]]()

    def headers_for(self, _url: str) -> dict[str, str]:
        """No secret is needed here."""
        return {}

    def progress(self, percent: int, text: str, done: int = 0, total: int = 0) -> None:
        """Kept."""
        self.heard.append((percent, text))


def serve(data: bytes, cut: int) -> tuple[ThreadingHTTPServer, list[str]]:
    """A server of `data` that ends each of its first two answers after `cut` bytes; it knows ranges."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            """The rest of the data from the range's begin, or a part of it."""
            wanted = self.headers.get("Range", "")
            asked.append(wanted)
            start = int(wanted.removeprefix("bytes=").rstrip("-") or 0)
            self.send_response(206 if wanted else 200)
            self.send_header("Content-Length", str(len(data) - start))
            self.end_headers()
            self.wfile.write(data[start : start + cut] if len(asked) < 3 else data[start:])

        def log_message(self, format: str, *args: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server, asked


@pytest.fixture
def packed(tmp_path: Path) -> bytes:
    """A tree as tar.zst."""
    source = tmp_path / "source"
    (source / "etc").mkdir(parents=True)
    (source / "etc/os-release").write_text("ID=debian\n" * 5000)
    (source / "etc/noise").write_bytes(os.urandom(1000))
    (source / "etc/link").symlink_to("os-release")
    tar = subprocess.run(["tar", "-C", source, "-cf", "-", "."], stdout=subprocess.PIPE, check=True).stdout
    return subprocess.run(["zstd", "-qc"], input=tar, stdout=subprocess.PIPE, check=True).stdout


def test_a_transfer_goes_on_where_it_broke_off(tmp_path: Path, packed: bytes) -> None:
    """Two broken connections: each byte is asked for once, and the tree is whole."""
    server, asked = serve(packed, 100)
    work, where = Work(), tmp_path / "mnt"
    where.mkdir()
    try:
        image = {
            "url": f"http://127.0.0.1:{server.server_port}/tree",
            "sha256": hashlib.sha256(packed).hexdigest(),
        }
        tree.write(work, image, where)  # type: ignore[arg-type]
    finally:
        server.shutdown()
        server.server_close()
    assert asked == ["", "bytes=100-", "bytes=200-"]
    assert (where / "etc/link").read_text() == "ID=debian\n" * 5000
    assert any("asking again" in text for _, text in work.heard)


def test_what_is_not_the_image_is_refused(tmp_path: Path, packed: bytes) -> None:
    """Another sum than the plan says, and bytes that are no archive."""
    for data, wanted in ((packed, "has SHA-256"), (b"no archive" * 100, "cannot be unpacked")):
        server, _ = serve(data, len(data))
        try:
            with pytest.raises(Failed, match=wanted):
                tree.write(
                    Work(), {"url": f"http://127.0.0.1:{server.server_port}/", "sha256": "0"}, tmp_path
                )  # type: ignore[arg-type]
        finally:
            server.shutdown()
            server.server_close()
