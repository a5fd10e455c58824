"""Programs: argument lists only, their output into the log, a failure that says what the program said."""

import subprocess
from collections.abc import Sequence

from ramdisk_agent.log import LOG
from ramdisk_agent.work import Failed


def run(
    argv: Sequence[str], *, input: str | bytes | None = None, timeout: float = 60, check: bool = True
) -> str:
    """Run a program and give its standard output. `input` goes to its standard input and never into the log.

    Raises Failed with the last line of its standard error when it is missing, takes longer than `timeout` seconds or
    (with `check`) exits with another code than 0. Without `check` its output is given whatever happens to it.
    """
    data = input.encode() if isinstance(input, str) else input or b""
    name, line = argv[0].rpartition("/")[2], " ".join(argv)
    try:
        done = subprocess.run(list(argv), input=data, capture_output=True, timeout=timeout, check=False)
    except FileNotFoundError:
        LOG.add(f"$ {line}: not in this ramdisk")
        if not check:
            return ""
        raise Failed(
            f"{name} is not in this ramdisk: build it anew with provisionctl ramdisk build"
        ) from None
    except subprocess.TimeoutExpired as error:
        LOG.add(f"$ {line}: ended after {timeout:g} s")
        if not check:
            return bytes(error.output or b"").decode(errors="replace")
        raise Failed(f"{name} did not end within {timeout:g} s: {line}") from None
    out, err = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    LOG.add(f"$ {line}: {done.returncode}\n{(out[-2000:] + err[-2000:]).strip()}")
    if check and done.returncode:
        said = [text.strip() for text in (err or out).splitlines() if text.strip()]
        raise Failed(f"{name} failed: {said[-1] if said else f'exit {done.returncode}'} ({line})")
    return out
