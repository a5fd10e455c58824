"""Users and tokens on both databases."""

from __future__ import annotations

import stat
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import select, update

from provisiond.errors import Conflict, Denied, Invalid, NotFound
from provisiond.inventory import access, history
from provisiond.inventory.shapes import TokenCreate, UserCreate, UserUpdate
from provisiond.inventory.store import Store
from provisiond.inventory.tables import Token, table, utcnow

_token = table(Token)


async def test_the_first_start(store: Store, tmp_path: Path) -> None:
    """It makes one admin token in a file of mode 0600 that works; later starts make none."""
    path = tmp_path / "state" / "admin.token"
    assert await access.first_admin_token(store, path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    who = await access.authenticate(store, path.read_text().strip())
    assert (who.name, who.role) == ("admin", "admin")
    before = path.read_text()
    assert not await access.first_admin_token(store, path)
    assert path.read_text() == before and len(list(path.parent.iterdir())) == 1
    async with store.read() as session:
        assert before.strip() not in str((await session.execute(select(_token))).all())


async def test_tokens_and_revocation(
    store: Store, other_store: Callable[[], Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A revoked token is refused at once here, and elsewhere as soon as the cache runs out."""
    await access.create_user(store, UserCreate(name="ann", role="operator"), actor="t")
    made = await access.create_token(store, "ann", TokenCreate(name="laptop", days=1), actor="user:ann")
    other = other_store()
    await other.open()
    assert (await access.authenticate(store, made.token)).role == "operator"
    assert (await access.authenticate(other, made.token)).role == "operator"
    (listed,) = await access.list_tokens(store, "ann")
    assert listed.id == made.id and listed.used_at is not None and made.token not in listed.model_dump_json()
    with pytest.raises(NotFound):
        await access.revoke_token(store, made.id, actor="t", only_of="bob")
    await access.revoke_token(store, made.id, actor="t")
    with pytest.raises(Denied, match="unknown or was revoked"):
        await access.authenticate(store, made.token)
    assert (await access.authenticate(other, made.token)).name == "ann"  # at most CACHE_SECONDS longer
    now = access.time.monotonic()
    monkeypatch.setattr(access.time, "monotonic", lambda: now + access.CACHE_SECONDS + 0.1)
    with pytest.raises(Denied):
        await access.authenticate(other, made.token)
    await other.close()


async def test_expiry(store: Store) -> None:
    """An expired token is refused with when it expired, and one about to expire is not remembered beyond that."""
    await access.create_user(store, UserCreate(name="ann"), actor="t")
    made = await access.create_token(store, "ann", TokenCreate(days=1), actor="t")
    async with store.write() as session:
        await session.execute(update(_token).values(expires_at=utcnow() - timedelta(seconds=1)))
    with pytest.raises(Denied, match="expired at 20"):
        await access.authenticate(store, made.token)


@pytest.mark.parametrize("token", ["", "pvd_", "x" * 10000, "\ud800", "' OR 1=1 --"])
async def test_wrong_tokens(store: Store, token: str) -> None:
    """Any other text is refused, and not repeated."""
    with pytest.raises(Denied) as caught:
        await access.authenticate(store, token)
    assert not token or token not in str(caught.value)


async def test_roles_and_the_last_administrator(store: Store) -> None:
    """A change of role counts at once; somebody always stays administrator."""
    await access.create_user(store, UserCreate(name="ann", role="admin"), actor="t")
    with pytest.raises(Invalid, match="a user ann already"):
        await access.create_user(store, UserCreate(name="ann"), actor="t")
    for attempt in (
        access.update_user(store, "ann", UserUpdate(role="viewer"), actor="t"),
        access.delete_user(store, "ann", actor="t"),
    ):
        with pytest.raises(Conflict, match="last administrator"):
            await attempt
    await access.create_user(store, UserCreate(name="bob", role="admin"), actor="t")
    made = await access.create_token(store, "ann", TokenCreate(), actor="t")
    assert (await access.authenticate(store, made.token)).role == "admin"
    await access.update_user(store, "ann", UserUpdate(role="viewer"), actor="t")
    assert (await access.authenticate(store, made.token)).role == "viewer"
    await access.delete_user(store, "ann", actor="t")
    with pytest.raises(Denied):
        await access.authenticate(store, made.token)
    assert [u.name for u in await access.list_users(store)] == ["bob"]
    kinds = [e.kind for e in await history.list_events(store)]
    assert kinds == ["user.created", "user.created", "token.created", "user.updated", "user.deleted"]
