"""Which hosts a step takes: stable, seeded, rounded up, never fewer than before."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from hypothesis import given

from provisiond.rollouts.subset import EVERYBODY, NOBODY, check_steps, size_of, threshold_of
from provisiond.templating.current import host_hash

HOSTS = [f"host-{n}" for n in range(200)]
IDS = st.lists(st.uuids().map(str), unique=True, max_size=60)
STEP = st.one_of(st.integers(1, 80).map(str), st.integers(1, 100).map(lambda n: f"{n}%"))


def taken(hosts: list[str], seed: str, threshold: str) -> set[str]:
    return {host for host in hosts if threshold and host_hash(seed, host) <= threshold}


@pytest.mark.parametrize(
    ("step", "hosts", "size"),
    [
        ("1", 200, 1),
        ("5%", 200, 10),
        ("5%", 10, 1),
        ("5%", 41, 3),
        ("25%", 3, 1),
        ("100%", 3, 3),
        ("10", 4, 4),
        ("0.5%", 200, 1),
    ],
)
def test_sizes(step: str, hosts: int, size: int) -> None:
    """Percentages round up, at least one host, at most all."""
    assert size_of(step, hosts) == size


@given(IDS, st.text(max_size=8), STEP, STEP)
def test_a_step_takes_as_many_as_it_says_and_none_falls_out(
    ids: list[str], seed: str, first: str, second: str
) -> None:
    """Whatever the hosts, the seed and the steps; a smaller second step keeps what the first one took."""
    one = threshold_of(first, ids, seed)
    assert len(taken(ids, seed, one)) == (size_of(first, len(ids)) if ids else 0)
    two = threshold_of(second, ids, seed, one)
    assert taken(ids, seed, one) <= taken(ids, seed, two)


@given(IDS, st.uuids().map(str), STEP)
def test_who_comes_later_moves_nobody(ids: list[str], newcomer: str, step: str) -> None:
    """Without a new step, a host that joins or leaves changes nothing for the others."""
    threshold = threshold_of(step, ids, "s")
    assert taken([*ids, newcomer], "s", threshold) - {newcomer} == taken(ids, "s", threshold)


def test_another_seed_takes_other_hosts() -> None:
    """Or the same machine would always be the first to suffer."""
    first = {next(iter(taken(HOSTS, seed, threshold_of("1", HOSTS, seed)))) for seed in map(str, range(10))}
    assert len(first) > 5


def test_the_last_step_takes_whoever_comes() -> None:
    """Also in a group that is empty yet."""
    assert threshold_of("100%", [], "s") == EVERYBODY
    assert threshold_of("5%", [], "s") == NOBODY


@pytest.mark.parametrize(
    ("steps", "wrong"),
    [
        (["1", "5%", "25%", "100%"], set()),
        (["100%"], set()),
        (["1", "5%"], {"steps.1"}),
        (["5%", "5%", "100%"], {"steps.1"}),
        (["10", "2", "100%"], {"steps.1"}),
        (["0", "x", "101%", "0%", "-1", "5 %"], {f"steps.{n}" for n in range(6)}),
        ([], {"steps"}),
    ],
)
def test_wrong_steps_are_named(steps: list[str], wrong: set[str]) -> None:
    """Every one of them at once."""
    assert {error.field for error in check_steps(steps)} == wrong
