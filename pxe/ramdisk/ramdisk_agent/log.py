"""What the agent says: onto the consoles, and into a bounded log that goes to the daemon."""

import threading
import time
from pathlib import Path

KEEP = 256 * 1024  # bytes of log that are kept: what one upload may have


class Log:
    """The newest `KEEP` bytes of what was said. Lines begin with the seconds since the kernel started."""

    def __init__(self, device: str | None = None) -> None:
        self._lines: list[str] = []
        self._size = 0
        self._lock = threading.Lock()
        self.console = (
            device  # the plan's serial console, such as ttyS0, when the kernel's console is another
        )

    def add(self, text: str) -> None:
        """Into the log only, such as the output of a program."""
        line = f"{time.monotonic():.1f} {text.rstrip()}\n"[-KEEP:]
        with self._lock:
            self._lines.append(line)
            self._size += len(line)
            while self._size > KEEP:
                self._size -= len(self._lines.pop(0))

    def say(self, text: str) -> None:
        """Into the log and onto the consoles."""
        self.add(text)
        line = f"provisiond: {text}\n"
        print(line, end="", flush=True)
        if self.console and not _is_console(self.console):
            try:
                Path("/dev", self.console).write_text(line)
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
        return device in Path("/sys/class/tty/console/active").read_text().split()
    except OSError:
        return False


LOG = Log()
