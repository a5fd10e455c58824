"""What expressions on facts can call."""

from provisiond.discovery.expression_functions import gib, like, pad, within


def test_what_expressions_call() -> None:
    """GiB of bytes, of a disk, of memory; patterns in any case; networks; zeros in front."""
    assert (gib(1 << 30), gib({"size": 3 << 29}), gib({"mib": 512}), gib({"mib": None}), gib("x"), gib(True)) == (
        1, 1.5, 0.5, None, None, None,
    )  # fmt: skip
    assert like("Dell Inc.", "DELL*") and not like(None, "*") and not like("x", None)
    assert within("10.1.2.3", "10.1.0.0/16") and not within("10.1.2.3", "10.1.0.0/33")
    assert (pad(7, 3), pad("a", 3)) == ("007", "00a")
