"""Which release is current for a host: the nearest place wins, and a rollout before the pointer beside it."""

from __future__ import annotations

import hashlib

import pytest

from provisiond.errors import NotFound
from provisiond.inventory.release_tables import EVERYWHERE, Release, ReleasePointer, Rollout
from provisiond.inventory.store import Store
from provisiond.templating.current import Portion, Standing, host_hash, load_standing, release_for

ALL = "f" * 64
HOSTS = [f"host-{n}" for n in range(1000)]


def taking(release: str, threshold: str = ALL, seed: str = "s") -> Portion:
    return Portion(release, None, seed, threshold)


@pytest.mark.parametrize(
    ("groups", "standing", "release"),
    [
        ([], Standing({EVERYWHERE: "all"}), "all"),
        (["root", "leaf"], Standing({EVERYWHERE: "all", "leaf": "leaf's"}), "leaf's"),
        (["root", "leaf"], Standing({EVERYWHERE: "all", "root": "root's", "leaf": "leaf's"}), "leaf's"),
        (["root", "leaf"], Standing({EVERYWHERE: "all", "root": "root's"}), "root's"),
        (["root", "leaf"], Standing({EVERYWHERE: "all", "other": "other's"}), "all"),
        (["root"], Standing({EVERYWHERE: "all", "root": "root's"}, {"root": taking("new")}), "new"),
        (["root"], Standing({EVERYWHERE: "all", "root": "root's"}, {"root": taking("new", "")}), "root's"),
        (["root"], Standing({EVERYWHERE: "all"}, {"root": taking("new", "")}), "all"),
        (["root"], Standing({EVERYWHERE: "all", "root": "root's"}, {EVERYWHERE: taking("new")}), "root's"),
        (["root", "leaf"], Standing({EVERYWHERE: "all", "root": "root's"}, {"leaf": taking("new")}), "new"),
        (["root"], Standing({}, {EVERYWHERE: taking("new")}), "new"),
    ],
)
def test_nearest_place_wins(groups: list[str], standing: Standing, release: str) -> None:
    """From the leaf to the root to everywhere; at one place the rollout's portion goes before the pointer."""
    assert release_for("host-1", groups, standing) == release


def test_nothing_is_current() -> None:
    """Without any pointer there is no release, and that is said."""
    with pytest.raises(NotFound, match="current"):
        release_for("host-1", ["root"], Standing({"other": "x"}, {"root": taking("new", "")}))


def test_portions_are_stable_and_grow() -> None:
    """A host once taken in stays in as the threshold rises; about the right share of hosts is in; another seed takes others."""
    quarter, half = "4" + "0" * 63, "8" + "0" * 63
    first, second = ({h for h in HOSTS if taking("r", t).takes(h)} for t in (quarter, half))
    assert first < second and 180 < len(first) < 320 and 420 < len(second) < 580
    assert first != {h for h in HOSTS if taking("r", quarter, "other").takes(h)}
    assert {h for h in HOSTS if taking("r").takes(h)} == set(HOSTS)
    assert host_hash("s", "h") == hashlib.sha256(b"s:h").hexdigest()
    assert taking("r", host_hash("s", "h")).takes("h")


async def test_standing_is_read(store: Store) -> None:
    """Pointers, and rollouts in the states that give their release; one that goes back gives none."""
    states = ["running", "waiting", "paused", "going-back", "done"]
    async with store.write() as session:
        release = Release(number=1, digest="d" * 64)
        session.add(release)
        await session.flush()
        session.add(ReleasePointer(place=EVERYWHERE, release_id=release.id, move_id=1))
        for number, state in enumerate(states):
            place = f"group-{number}" if state != "done" else None
            session.add(
                Rollout(
                    number=number,
                    state=state,
                    active_place=place,
                    release_id=release.id,
                    seed="s",
                    threshold=ALL,
                )
            )
    async with store.read() as session:
        standing = await load_standing(session)
    assert standing.pointers == {EVERYWHERE: release.id}
    assert standing.rollouts == {f"group-{n}": Portion(release.id, None, "s", ALL) for n in range(3)}
