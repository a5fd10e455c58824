"""Programs that the agent starts."""

import pytest

from ramdisk_agent.log import LOG
from ramdisk_agent.run import run
from ramdisk_agent.work import Failed


def test_output_comes_back_and_is_in_the_log() -> None:
    """What a program prints is given, and the log has the call."""
    assert run(["echo", "hello"]) == "hello\n"
    assert "$ echo hello: 0\nhello" in LOG.text()


def test_input_is_not_in_the_log() -> None:
    """A secret goes through standard input: the program has it, the log does not."""
    assert run(["wc", "-c"], input="secret-passphrase").strip() == "17"
    assert "secret-passphrase" not in LOG.text()


def test_a_failure_says_the_last_line() -> None:
    """The message has what the program said last, and the call."""
    with pytest.raises(Failed, match=r"sh failed: two \(sh -c"):
        run(["sh", "-c", "echo one >&2; echo two >&2; exit 3"])
    assert run(["sh", "-c", "echo kept; exit 3"], check=False) == "kept\n"


def test_a_program_that_is_missing_or_too_slow() -> None:
    """Both are told in words."""
    with pytest.raises(Failed, match="no-such-program is not in this ramdisk"):
        run(["/real/no-such-program"])
    with pytest.raises(Failed, match=r"did not end within 0\.2 s"):
        run(["sleep", "60"], timeout=0.2)
    assert run(["sh", "-c", "echo early; exec sleep 60"], timeout=0.5, check=False) == "early\n"
