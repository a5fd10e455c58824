"""Lists of checksums and keys, as they are written in the wild."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provisiond.ctl.software import _armored
from provisiond.media.fetch import MediaError
from provisiond.media.vouch import Proof, _binary_key, listed_digest

A, B, LONG = "a" * 64, "b" * 64, "c" * 128


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"{A}  d.raw\n", A),
        (f"{A} *./d.raw\n{B}  e.raw\n", A),
        (f"{A.upper()}  images/d.raw\r\n", A),
        (f"SHA256 (d.raw) = {A}\n", A),
        (f"# d.raw: 3 bytes\nSHA512 (d.raw) = {LONG}\nSHA256 (d.raw) = {A}\n", A),
        (f"{LONG}  d.raw\n", LONG),
        (f"{A}  xd.raw\n{A}  d.raw.asc\n", None),
        (f"{A[:40]}  d.raw\n", None),
        ("", None),
    ],
)
def test_listed_digest(text: str, expected: str | None) -> None:
    """The digest of exactly the file that is asked for, in each of the usual formats."""
    assert listed_digest(text.encode(), "d.raw") == expected


def test_two_files_of_one_name() -> None:
    """A list that has two different ones vouches for neither."""
    with pytest.raises(MediaError, match="several files"):
        listed_digest(f"{A}  x/d.raw\n{B}  y/d.raw\n".encode(), "d.raw")


@given(st.binary(min_size=1, max_size=3000))
def test_a_binary_key_file_is_armoured_and_read_again(key: bytes) -> None:
    """What the command line makes of a binary keyring is what gpgv is given."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(b"\x99" + key)
        file.flush()
        assert _binary_key(_armored(Path(file.name))) == b"\x99" + key


def test_proof_that_proves_nothing() -> None:
    """A signature without a key, a key without a signature, and plain http with nothing are refused before anything is fetched."""
    for proof, source in (
        (Proof(signature="https://x/s"), "https://x/d.raw"),
        (Proof(key="k"), "https://x/d.raw"),
        (Proof(), "http://x/d.raw"),
        (Proof(checksums="http://x/SUMS"), "http://x/d.raw"),
        (Proof(checksums="ftp://x/SUMS"), "https://x/d.raw"),
    ):
        with pytest.raises(MediaError):
            proof.check(source)
    Proof(checksums="https://x/SUMS").check("http://x/d.raw")
    Proof(signature="http://x/s", key="k").check("http://x/d.raw")
