"""What the agent says: onto the consoles, and into a bounded log that goes to the daemon."""

import re
import threading
import time

KEEP = 256 * 1024  # characters of log that are kept: what one upload may have
TOKEN = re.compile(r"(/boot/)[A-Za-z0-9_-]{20,128}(?=/)")  # of a build, in the URLs of its files


class Log:
    """The newest `KEEP` characters of what was said. Lines begin with the seconds since the kernel started."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._size = 0
        self._lock = threading.Lock()
        self._secrets: list[str] = []
        self.console: str | None = None  # the plan's serial console, such as ttyS0

    def hide(self, secret: str) -> None:
        """Never show this text, in the log or in a message to the daemon."""
        if len(secret) >= 8 and secret not in self._secrets:
            self._secrets.append(secret)

    def cleaned(self, text: str) -> str:
        """`text` without what is hidden."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        return TOKEN.sub(r"\1TOKEN", text)

    def add(self, text: str) -> None:
        """Into the log only, such as the output of a program."""
        line = f"{time.monotonic():.1f} {self.cleaned(text).rstrip()}\n"[-KEEP:]
        with self._lock:
            self._lines.append(line)
            self._size += len(line)
            while self._size > KEEP:
                self._size -= len(self._lines.pop(0))

    def say(self, text: str) -> None:
        """Into the log and onto the consoles."""
        self.add(text)
        line = f"provisiond: {self.cleaned(text)}\n"
        print(line, end="", flush=True)
        if self.console and not _is_console(self.console):
            try:
                with open(f"/dev/{self.console}", "w") as device:
                    device.write(line)
            except OSError as error:
                self.add(f"console {self.console}: {error}")
                self.console = None

    def text(self, size: int = KEEP) -> str:
        """The last `size` characters."""
        with self._lock:
            return "".join(self._lines)[-size:]


def _is_console(device: str) -> bool:
    """Whether the kernel's console is this device, so that what was printed is on it already."""
    try:
        with open("/sys/class/tty/console/active") as active:
            return device in active.read().split()
    except OSError:
        return False


LOG = Log()
