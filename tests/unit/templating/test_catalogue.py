"""Headers, the catalogue, and releases as rows."""

from __future__ import annotations

import asyncio
import base64
import os
import subprocess
from pathlib import Path

import pytest
from sqlmodel import select

from provisiond.config import TemplateSettings
from provisiond.errors import ConfigError, NotFound, RenderError
from provisiond.inventory.release_tables import EVERYWHERE, PointerMove, Release, Rollout
from provisiond.inventory.store import RELEASES, Store
from provisiond.templating.catalogue import (
    Catalogue,
    catalogue_of,
    digest,
    ensure_release,
    read_directory,
    shipped_directory,
)
from provisiond.templating.context import BuildUrls
from provisiond.templating.current import load_standing
from provisiond.templating.headers import parse_header
from provisiond.templating.pointers import move_pointer
from provisiond.templating.reference import reference
from provisiond.templating.release import Renderings
from tests.golden.hosts import ALMA_MEDIUM, DEBIAN_MEDIUM, IMAGE, make_host


def template(kind: str, *, families: str = "", versions: str = "", body: str = "x") -> str:
    """A template with a small header."""
    return f"{{#\nkind: {kind}\nabout: a test\nfamilies: [{families}]\nversions: [{versions}]\n#}}\n{body}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("no header", "does not begin with a header"),
        ("{# a comment #}\nx", "does not begin with a header"),
        ("{#\nkind: [\n#}\n", "not YAML"),
        ("{#\nabout: x\n#}\n", "kind: Field required"),
        ("{#\nkind: x\nabout: x\nfamilys: [debian]\n#}\n", "familys: Extra inputs"),
        ("{#\nkind: x\nabout: x\nparameters:\n  a: {type: text, about: x}\n#}\n", "parameters.a.type"),
        (
            "{#\nkind: x\nabout: x\nparameters:\n  a: {type: integer, default: five, about: x}\n#}\n",
            "its default must be a integer",
        ),
        (
            "{#\nkind: x\nabout: x\nparameters:\n  a: {type: string, default: c, choices: [a, b], about: x}\n#}\n",
            "must be one of a, b",
        ),
    ],
)
def test_wrong_headers(text: str, said: str) -> None:
    """A wrong header names the template and every wrong key."""
    with pytest.raises(RenderError, match=r"kickstart/x\.j2") as caught:
        parse_header("kickstart/x.j2", text)
    assert said in str(caught.value)


def test_null_fits_wherever_its_description_says_so() -> None:
    """Every shipped parameter that explains what null does takes null; one without says that it does not."""
    parameters = [
        (path, name, parameter)
        for path, header in read_directory(shipped_directory()).headers.items()
        for name, parameter in header.parameters.items()
    ]
    explained = [(path, name) for path, name, p in parameters if "null" in p.about]
    assert ("preseed/debian.cfg.j2", "security_mirror") in explained
    assert [(path, name) for path, name, p in parameters if "null" in p.about and p.check(None)] == []
    timezone = next(parameter for _, name, parameter in parameters if name == "timezone")
    assert timezone.check(None) == "must be a string, not null"


def test_find_takes_the_closest_version() -> None:
    """The longest matching version wins, then the family, then a template for anything."""
    catalogue = Catalogue.of(
        {
            "any.j2": template("kickstart"),
            "family.j2": template("kickstart", families="redhat"),
            "nine.j2": template("kickstart", families="redhat", versions='"9"'),
            "nine-two.j2": template("kickstart", families="redhat", versions='"9.2"'),
        }
    )
    assert catalogue.find("kickstart", "redhat", "9.2") == "nine-two.j2"
    assert catalogue.find("kickstart", "redhat", "9.4") == "nine.j2"
    assert catalogue.find("kickstart", "redhat", "90") == "family.j2"
    assert catalogue.find("kickstart", "suse", "15") == "any.j2"
    with pytest.raises(NotFound, match="preseed for debian 12"):
        catalogue.find("preseed", "debian", "12")


def test_digest_sees_paths_and_texts() -> None:
    """Moving a byte from one name or text to the next changes the digest; the order of files does not."""
    assert digest({"a": "bc", "d": "e"}) == digest({"d": "e", "a": "bc"})
    assert len({digest({"a": "bc"}), digest({"ab": "c"}), digest({"a": "b", "c": ""}), digest({})}) == 4


def test_catalogue_cannot_be_changed() -> None:
    """What is rendered is what was read."""
    catalogue = Catalogue.of({"a.j2": template("x")})
    with pytest.raises(TypeError):
        catalogue.files["a.j2"] = "other"  # type: ignore[index]


def test_directory_limits(tmp_path: Path) -> None:
    """An empty directory, a link out of it, a huge file and bytes that are no text are refused by name."""
    with pytest.raises(ConfigError, match="there is no directory"):
        read_directory(tmp_path / "missing")
    with pytest.raises(ConfigError, match="there is no"):
        read_directory(tmp_path)
    target = tmp_path / "t"
    target.mkdir()
    (target / "a.j2").symlink_to("/etc/hostname")
    with pytest.raises(ConfigError, match="leads out"):
        read_directory(target)
    (target / "a.j2").unlink()
    (target / "a.j2").write_bytes(b"{" * (300 << 10))
    with pytest.raises(ConfigError, match="larger"):
        read_directory(target)
    (target / "a.j2").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not UTF-8"):
        read_directory(target)


def test_git_commit(tmp_path: Path) -> None:
    """A clean checkout gives its commit; a changed one gives none, as the commit would not be what is served."""
    git = ["git", "-C", str(tmp_path), "-c", "user.name=t", "-c", "user.email=t@example.org"]
    environment = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null"}
    (tmp_path / "a.j2").write_text(template("x"))
    assert read_directory(tmp_path).git_commit is None
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], check=True, env=environment)
    head = subprocess.run(
        [*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True
    ).stdout.strip()
    assert read_directory(tmp_path).git_commit == head
    (tmp_path / "a.j2").write_text(template("y"))
    assert read_directory(tmp_path).git_commit is None


async def current(store: Store) -> str:
    """The id of the release that is current everywhere."""
    async with store.read() as session:
        return (await load_standing(session)).pointers[EVERYWHERE]


async def test_release_is_stored_once_and_current(store: Store) -> None:
    """The same files are the same release, also when several daemons start at once; the directory's files are current."""
    first = Catalogue.of({"a.j2": template("x")})
    second = Catalogue.of({"a.j2": template("x", body="other")})
    releases = await asyncio.gather(*(ensure_release(store, first) for _ in range(5)))
    assert len({r.id for r in releases}) == 1 and await current(store) == releases[0].id
    newer = await ensure_release(store, second)
    await ensure_release(store, second)
    async with store.read() as session:
        rows = {r.digest: r.number for r in (await session.execute(select(Release))).scalars()}
        moves = (await session.execute(select(PointerMove))).scalars().all()
    assert rows == {first.digest: 1, second.digest: 2} and len(moves) == 2
    assert await current(store) == newer.id
    assert catalogue_of(newer).files["a.j2"].endswith("other")
    assert (await ensure_release(store, first)).id == await current(store)


async def test_what_was_made_current_by_hand_stays(store: Store) -> None:
    """A daemon that starts with other files stores them, and leaves the pointer where somebody has put it."""
    first = await ensure_release(store, Catalogue.of({"a.j2": template("x")}))
    second = await ensure_release(store, Catalogue.of({"a.j2": template("x", body="other")}))
    await store.transact(lambda s: move_pointer(s, EVERYWHERE, first.id, actor="user:ann"), RELEASES)
    assert (await ensure_release(store, catalogue_of(second))).id == second.id
    assert await current(store) == first.id


async def test_no_daemon_moves_a_pointer_under_a_rollout(store: Store) -> None:
    """While a rollout is under way everywhere, a start with other files changes nothing that is current."""
    first = await ensure_release(store, Catalogue.of({"a.j2": template("x")}))
    async with store.write() as session:
        session.add(Rollout(number=1, active_place=EVERYWHERE, release_id=first.id))
    await ensure_release(store, Catalogue.of({"a.j2": template("x", body="other")}))
    assert await current(store) == first.id


async def test_changed_release_is_noticed(store: Store) -> None:
    """A release whose files were changed in the database is refused."""
    release = await ensure_release(store, Catalogue.of({"a.j2": template("x")}))
    release.files = {"a.j2": template("x", body="evil")}
    with pytest.raises(ConfigError, match="was changed in the database"):
        catalogue_of(release)


async def test_renderings(store: Store) -> None:
    """By host and kind, from the release its build is pinned to; a check renders all that a build will be served."""
    renderings = await Renderings.open(store, TemplateSettings(), ["ssh-ed25519 AAAA daemon"])
    urls = BuildUrls.of("http://10.0.0.1:8421/", "tok")
    assert "tok" not in repr(urls)
    host = make_host(medium=DEBIAN_MEDIUM)
    text, content_type = await renderings.unattended(host, urls)
    assert content_type == "text/plain"
    late = base64.b64decode(text.partition("echo ")[2].rpartition(" | chroot")[0].rpartition(" ")[2]).decode()
    assert "http://10.0.0.1:8421/boot/tok/built" in text and "ssh-ed25519 AAAA daemon" in late
    await renderings.check(host, "http://10.0.0.1:8421")
    await renderings.check(make_host(image=IMAGE), "http://10.0.0.1:8421")
    bare = make_host(medium=DEBIAN_MEDIUM, security_mirror=None, serial_console=None)
    await renderings.check(bare, "http://10.0.0.1:8421")
    assert (await renderings.render_machine("ipxe-entry", "http://10.0.0.1:8421/boot")).startswith("#!ipxe\n")
    with pytest.raises(
        RenderError, match=r"no kickstart template for debian-12 \(debian 12\), which host web01"
    ):
        await renderings.serve(host, "kickstart", urls)
    with pytest.raises(RenderError, match=r"medium\.mirror.*web01"):
        await renderings.check(make_host(), "http://10.0.0.1:8421")
    with pytest.raises(RenderError, match="parameter 'packages' of host web01 must be a list"):
        await renderings.check(make_host(medium=ALMA_MEDIUM, packages="vim"), "http://10.0.0.1:8421")


def test_parameter_reference_is_up_to_date() -> None:
    """docs/templates/parameters.md is what the headers say; the module writes it."""
    written = (shipped_directory().parent / "docs/templates/parameters.md").read_text()
    assert written == reference(read_directory(shipped_directory()))


def test_every_file_is_well_formed() -> None:
    """Every shipped template and snippet compiles, and its parameters agree with those of the snippets it includes."""
    from provisiond.templating.render import Renderer

    renderer = Renderer(read_directory(shipped_directory()))
    for path in renderer.catalogue.files:
        renderer.parameters(path)
