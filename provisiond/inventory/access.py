"""Who may do what: users with a role, and their API tokens.

A token is 256 random bits behind ``pvd_``; the database holds only its SHA-256. ``authenticate`` remembers a good token for 5
seconds; a revocation in this process takes effect at once, in another daemon's within those 5 seconds.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import delete, func, insert, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.errors import Conflict, Denied, FieldError, Invalid, NotFound
from provisiond.inventory import history
from provisiond.inventory.shapes import (
    Role,
    TokenCreate,
    TokenCreated,
    TokenView,
    UserCreate,
    UserUpdate,
    UserView,
)
from provisiond.inventory.store import EVENTS, Store
from provisiond.inventory.tables import Token, User, new_row, table, utcnow

CACHE_SECONDS = 5.0
_USED_EVERY = timedelta(minutes=10)  # how exactly the last use of a token is kept
_CACHE_SIZE = 10_000
_user, _token = table(User), table(Token)


@dataclass(frozen=True)
class Principal:
    """Somebody whose token was good."""

    id: str
    name: str
    role: Role

    @property
    def actor(self) -> str:
        """As the history names them."""
        return f"user:{self.name}"


@dataclass
class _Cache:
    """Good tokens by their hash, until when; ``generation`` moves on when something was taken away."""

    good: dict[str, tuple[Principal, float]] = field(default_factory=dict)
    generation: int = 0

    def clear(self) -> None:
        self.good.clear()
        self.generation += 1


_caches: WeakKeyDictionary[Store, _Cache] = WeakKeyDictionary()


def _cache(store: Store) -> _Cache:
    return _caches.setdefault(store, _Cache())


async def authenticate(store: Store, token: str) -> Principal:
    """The bearer of ``token``. Raises Denied when it is unknown, revoked or expired."""
    hashed = _hash(token)
    cache = _cache(store)
    found = cache.good.get(hashed)
    if found is not None and found[1] > time.monotonic():
        return found[0]
    generation = cache.generation
    statement = (
        select(
            _token.c.id,
            _token.c.expires_at,
            _token.c.used_at,
            _user.c.id.label("user_id"),
            _user.c.name,
            _user.c.role,
        )
        .join(_user, _user.c.id == _token.c.user_id)
        .where(_token.c.hash == hashed)
    )
    async with store.connect() as connection:
        row = (await connection.execute(statement)).first()
    if row is None:
        raise Denied(
            "the token is unknown or was revoked; ask an administrator for another: provisionctl token create"
        )
    now = utcnow()
    if row.expires_at is not None and row.expires_at <= now:
        raise Denied(
            f"the token expired at {row.expires_at:%Y-%m-%d %H:%M} UTC; make another: provisionctl token create"
        )
    principal = Principal(row.user_id, row.name, row.role)
    if cache.generation == generation:
        if len(cache.good) >= _CACHE_SIZE:
            cache.good.clear()
        left = (
            CACHE_SECONDS
            if row.expires_at is None
            else min(CACHE_SECONDS, (row.expires_at - now).total_seconds())
        )
        cache.good[hashed] = (principal, time.monotonic() + left)
    if row.used_at is None or row.used_at < now - _USED_EVERY:

        async def work(session: AsyncSession) -> None:
            await session.execute(update(_token).where(_token.c.id == row.id).values(used_at=now))

        await store.transact(work)
    return principal


async def first_admin_token(store: Store, path: Path) -> bool:
    """At the very first start (no user yet) make the user ``admin`` and write its token to ``path``, mode 0600.

    Returns whether it did. The file is written before the database, so that a crash between them leaves a token that does
    not work yet and is made anew at the next start, never an installation that nobody can enter.
    """

    async def nobody(session: AsyncSession) -> bool:
        return (await session.execute(select(func.count()).select_from(_user))).scalar_one() == 0

    async with store.read() as session:
        if not await nobody(session):
            return False
    token = _new_token()
    path.parent.mkdir(parents=True, exist_ok=True)
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    staged.unlink(missing_ok=True)
    with os.fdopen(os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "w") as file:
        file.write(token + "\n")
        file.flush()
        os.fsync(file.fileno())

    async def work(session: AsyncSession) -> bool:
        if not await nobody(session):
            return False
        user = new_row(User, name="admin", role="admin")
        await session.execute(insert(_user).values(user))
        row = new_row(Token, user_id=user["id"], name="first start", hash=_hash(token))
        await session.execute(insert(_token).values(row))
        await history.add(
            session, kind="user.created", actor="engine", message="admin", data={"role": "admin"}
        )
        return True

    staged.replace(path)
    made = False
    with suppress(IntegrityError):  # another daemon was quicker
        made = await store.transact(work, EVENTS)
    if not made and path.exists() and path.read_text().strip() == token:
        path.unlink()
    return made


# --- users -----------------------------------------------------------------------------------------------


async def create_user(store: Store, spec: UserCreate, *, actor: str) -> UserView:
    """Raises Invalid when there is a user of that name."""

    async def work(session: AsyncSession) -> UserView:
        if (await session.execute(select(_user.c.id).where(_user.c.name == spec.name))).first():
            raise Invalid([FieldError("name", f"there is a user {spec.name} already")])
        row = new_row(User, name=spec.name, role=spec.role)
        await session.execute(insert(_user).values(row))
        await history.add(
            session, kind="user.created", actor=actor, message=spec.name, data={"role": spec.role}
        )
        return _user_view(row)

    try:
        return await store.transact(work, EVENTS)
    except IntegrityError:
        raise Invalid([FieldError("name", f"there is a user {spec.name} already")]) from None


async def list_users(store: Store) -> list[UserView]:
    """Everybody, by name."""
    async with store.connect() as connection:
        return [
            _user_view(row._mapping) for row in await connection.execute(select(_user).order_by(_user.c.name))
        ]


async def update_user(store: Store, name: str, change: UserUpdate, *, actor: str) -> UserView:
    """Give a user another role. Raises NotFound, Conflict (the last administrator)."""

    async def work(session: AsyncSession) -> UserView:
        row = await _find_user(session, name)
        if row.role == "admin" and change.role != "admin":
            await _keep_an_admin(session, row)
        await session.execute(
            update(_user).where(_user.c.id == row.id).values(role=change.role, updated_at=utcnow())
        )
        await history.add(
            session, kind="user.updated", actor=actor, message=row.name, data={"role": change.role}
        )
        return _user_view({**row._mapping, "role": change.role})

    view = await store.transact(work, EVENTS)
    _cache(store).clear()
    return view


async def delete_user(store: Store, name: str, *, actor: str) -> None:
    """Remove a user and revoke all tokens of theirs. Raises NotFound, Conflict (the last administrator)."""

    async def work(session: AsyncSession) -> None:
        row = await _find_user(session, name)
        if row.role == "admin":
            await _keep_an_admin(session, row)
        await session.execute(delete(_user).where(_user.c.id == row.id))
        await history.add(session, kind="user.deleted", actor=actor, message=row.name)

    await store.transact(work, EVENTS)
    _cache(store).clear()


# --- tokens ----------------------------------------------------------------------------------------------


async def create_token(store: Store, user: str, spec: TokenCreate, *, actor: str) -> TokenCreated:
    """A token for ``user``; the only time its text is told. Raises NotFound."""
    text = _new_token()

    async def work(session: AsyncSession) -> TokenCreated:
        owner = await _find_user(session, user)
        expires: datetime | None = utcnow() + timedelta(days=spec.days) if spec.days is not None else None
        row = new_row(Token, user_id=owner.id, name=spec.name, hash=_hash(text), expires_at=expires)
        await session.execute(insert(_token).values(row))
        await history.add(
            session, kind="token.created", actor=actor, message=f"for {owner.name}", data={"token": row["id"]}
        )
        return TokenCreated(token=text, **_token_fields({**row, "user": owner.name}))

    return await store.transact(work, EVENTS)


async def list_tokens(store: Store, user: str | None = None) -> list[TokenView]:
    """All tokens, or a user's; never their text."""
    statement = select(_token, _user.c.name.label("user")).join(_user, _user.c.id == _token.c.user_id)
    if user is not None:
        statement = statement.where(_user.c.name == user)
    async with store.connect() as connection:
        rows = (await connection.execute(statement.order_by(_user.c.name, _token.c.created_at))).all()
    return [TokenView(**_token_fields(row._mapping)) for row in rows]


async def revoke_token(store: Store, token_id: str, *, actor: str, only_of: str | None = None) -> None:
    """End a token. ``only_of`` restricts it to the tokens of that user. Raises NotFound."""

    async def work(session: AsyncSession) -> None:
        statement = (
            select(_token.c.id, _user.c.name)
            .join(_user, _user.c.id == _token.c.user_id)
            .where(_token.c.id == token_id)
        )
        row = (await session.execute(statement)).first()
        if row is None or (only_of is not None and row.name != only_of):
            raise NotFound("token", token_id)
        await session.execute(delete(_token).where(_token.c.id == token_id))
        await history.add(
            session, kind="token.revoked", actor=actor, message=f"of {row.name}", data={"token": token_id}
        )

    await store.transact(work, EVENTS)
    _cache(store).clear()


# --- inner -----------------------------------------------------------------------------------------------


def _new_token() -> str:
    return "pvd_" + secrets.token_urlsafe(32)


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode(errors="surrogatepass")).hexdigest()


async def _find_user(session: AsyncSession, name: str) -> Any:
    row = (await session.execute(select(_user).where(_user.c.name == name).with_for_update())).first()
    if row is None:
        raise NotFound("user", name)
    return row


async def _keep_an_admin(session: AsyncSession, row: Any) -> None:
    """Raises Conflict if ``row`` is the only administrator. Locks them all, so that two cannot remove each other."""
    admins = (
        await session.execute(
            select(_user.c.id).where(_user.c.role == "admin").order_by(_user.c.id).with_for_update()
        )
    ).all()
    if len(admins) <= 1:
        raise Conflict(f"user {row.name} is the last administrator; make another one first")


def _user_view(row: Any) -> UserView:
    return UserView(**{name: row[name] for name in UserView.model_fields})


def _token_fields(row: Any) -> dict[str, Any]:
    return {name: row[name] for name in TokenView.model_fields}
