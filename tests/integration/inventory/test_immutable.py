"""Releases and the moves of pointers cannot be changed: tried through SQL, on both databases, as made by models and by migration."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import create_engine, delete, insert, text, update
from sqlalchemy.exc import IntegrityError
from sqlmodel import Session, SQLModel

from provisiond.errors import ConfigError
from provisiond.inventory import migrate
from provisiond.inventory.release_tables import EVERYWHERE, PointerMove, Release, ReleasePointer
from provisiond.inventory.store import Store
from provisiond.inventory.tables import table
from provisiond.templating.catalogue import Catalogue, catalogue_of, ensure_release
from tests.databases import open_store

_release, _move = table(Release), table(PointerMove)
A = Catalogue.of({"a.j2": "{#\nkind: x\nabout: a test\n#}\nx"})
ATTEMPTS: list[Any] = [
    update(_release).values(files={"a.j2": "evil"}),
    update(_release).values(message="another"),
    update(_release).values(digest="0" * 64),
    delete(_release),
    text("DELETE FROM template_release"),
    update(_move).values(reason="it was not me"),
    update(_move).values(release_id=None),
    delete(_move),
]


@pytest.mark.parametrize("made_by", ["models", "migration"])
async def test_the_database_refuses(empty_database_url: str, made_by: str) -> None:
    """Every UPDATE and DELETE is refused and the bytes are as before; a new release and a new move are taken."""
    if made_by == "migration":
        migrate.upgrade(empty_database_url)
    else:
        create_all(empty_database_url)
    async with open_store(empty_database_url) as store:
        kept = await ensure_release(store, A)
        attempts = list(ATTEMPTS)
        if store.sqlite:
            attempts += [
                text("REPLACE INTO template_release SELECT * FROM template_release"),
                insert(_release).prefix_with("OR REPLACE").values(number=1, digest="0" * 64, files={}),
                text("REPLACE INTO pointer_move SELECT * FROM pointer_move"),
            ]
        else:
            attempts += [text(f"TRUNCATE {t} CASCADE") for t in ("template_release", "pointer_move")]
        for attempt in attempts:
            with pytest.raises(IntegrityError, match="never change"):
                async with store.write() as session:
                    await session.execute(attempt)
        async with store.write() as session:  # pointers move
            await session.execute(update(table(ReleasePointer)).values(move_id=1))
        await ensure_release(store, Catalogue.of({"a.j2": A.files["a.j2"] + "y"}))
        assert catalogue_of(await read(store, kept.id)).files == A.files


async def test_who_takes_the_guard_away_is_found_out(database_url: str) -> None:
    """A release changed by the database's own administrator is refused where it is loaded."""
    async with open_store(database_url) as store:
        kept = await ensure_release(store, A)
        async with store.write() as session:
            if store.sqlite:
                await session.execute(text("DROP TRIGGER template_release_no_update"))
            else:
                await session.execute(text("ALTER TABLE template_release DISABLE TRIGGER USER"))
            await session.execute(update(_release).values(files={"a.j2": A.files["a.j2"] + "evil"}))
        with pytest.raises(ConfigError, match="was changed in the database"):
            catalogue_of(await read(store, kept.id))


def test_models_and_migration_make_the_same_guards(empty_database_url: str) -> None:
    """The triggers of both ways are alike to the letter; the way down takes them away."""
    migrate.upgrade(empty_database_url)
    migrated = guards(empty_database_url)
    migrate.downgrade(empty_database_url, "base")
    assert guards(empty_database_url) == []
    create_all(empty_database_url)
    assert guards(empty_database_url) == migrated != []


def test_the_way_down_and_up_again_keeps_releases(empty_database_url: str) -> None:
    """A release and a pointer go down to the first schema and up again, and are guarded again."""
    migrate.upgrade(empty_database_url)
    engine = create_engine(plain(empty_database_url))
    with Session(engine) as session:
        session.add(Release(id="r1", number=1, digest="d"))
        session.flush()
        session.add(PointerMove(id=1, place=EVERYWHERE, release_id="r1"))
        session.add(ReleasePointer(place=EVERYWHERE, release_id="r1", move_id=1))
        session.commit()
    before = guards(empty_database_url)
    migrate.downgrade(empty_database_url, "0001_first")
    migrate.upgrade(empty_database_url)
    assert guards(empty_database_url) == before
    with engine.connect() as connection:
        found = connection.execute(text("SELECT place, release_id FROM release_pointer")).all()
    engine.dispose()
    assert [tuple(row) for row in found] == [(EVERYWHERE, "r1")]


def create_all(url: str) -> None:
    engine = create_engine(plain(url))
    SQLModel.metadata.create_all(engine)
    engine.dispose()


def plain(url: str) -> str:
    return url.replace("sqlite+inloop", "sqlite")


def guards(url: str) -> list[tuple[str, ...]]:
    engine = create_engine(plain(url))
    with engine.connect() as connection:
        if url.startswith("sqlite"):
            said = "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' ORDER BY name"
        else:
            said = (
                "SELECT t.tgname, pg_get_triggerdef(t.oid), p.prosrc FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid "
                "WHERE NOT t.tgisinternal ORDER BY 1"
            )
        found = [tuple(row) for row in connection.execute(text(said))]
    engine.dispose()
    return found


async def read(store: Store, release_id: str) -> Release:
    async with store.read() as session:
        release = await session.get(Release, release_id)
    assert release is not None
    return release
