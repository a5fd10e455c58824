"""Users and tokens. A token's text is shown once, in the answer that makes it."""

from __future__ import annotations

from provisiond.api.deps import ApiDeps
from provisiond.api.hosts import Page
from provisiond.errors import Denied, NotFound
from provisiond.inventory import access
from provisiond.inventory.access import Principal
from provisiond.inventory.shapes import (
    TokenCreate,
    TokenCreated,
    TokenView,
    UserCreate,
    UserUpdate,
    UserView,
    View,
)


class WhoamiView(View):
    name: str
    role: str


async def show_whoami(who: Principal) -> WhoamiView:
    """The bearer of the token that was sent."""
    return WhoamiView(name=who.name, role=who.role)


async def create_user(deps: ApiDeps, body: UserCreate, who: Principal) -> UserView:
    """A user gets in by tokens only: make one next."""
    return await access.create_user(deps.store, body, actor=who.actor)


async def list_users(deps: ApiDeps) -> Page[UserView]:
    """In order of their names."""
    return Page(items=await access.list_users(deps.store))


async def show_user(deps: ApiDeps, name: str) -> UserView:
    """By name."""
    for user in await access.list_users(deps.store):
        if user.name == name:
            return user
    raise NotFound("user", name)


async def update_user(deps: ApiDeps, name: str, body: UserUpdate, who: Principal) -> UserView:
    """Another role; it holds at once for all tokens of the user."""
    return await access.update_user(deps.store, name, body, actor=who.actor)


async def delete_user(deps: ApiDeps, name: str, who: Principal) -> None:
    """With all their tokens. The last administrator stays."""
    await access.delete_user(deps.store, name, actor=who.actor)


async def create_token(deps: ApiDeps, body: TokenCreate, who: Principal) -> TokenCreated:
    """For oneself; administrators also for others."""
    owner = body.user or who.name
    if owner != who.name and who.role != "admin":
        raise Denied(f"only an administrator makes tokens for others; you are {who.name}", authenticated=True)
    return await access.create_token(deps.store, owner, body, actor=who.actor)


async def list_tokens(deps: ApiDeps, who: Principal) -> Page[TokenView]:
    """One's own; administrators see everybody's. Never their text."""
    return Page(items=await access.list_tokens(deps.store, None if who.role == "admin" else who.name))


async def delete_token(deps: ApiDeps, id: str, who: Principal) -> None:
    """It ends at once. One's own; administrators also others'."""
    only_of = None if who.role == "admin" else who.name
    await access.revoke_token(deps.store, id, actor=who.actor, only_of=only_of)
