"""What a release makes of hosts beside what is current for them: rendered, compared, validated; nothing is served or stored.

A verdict is given once for texts that are equal but for the hosts' own names, MACs and addresses, as long as those are of the
same shape (shadow_diff.shape): the inventory has checked that they are names, MACs and addresses, and what else a validator
looks at is in the text. Whatever else differs between two hosts, their parameters and secrets too, is validated for each.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from provisiond.errors import NotFound, ProvisiondError, RenderError
from provisiond.inventory.masking import mask
from provisiond.inventory.resolve import ResolvedHost
from provisiond.rollouts.shadow_diff import (
    OwnValues,
    blank,
    difference,
    digest,
    own_values,
    secrets_of,
    shape,
)
from provisiond.templating.context import BuildUrls
from provisiond.templating.current import Standing, release_for
from provisiond.templating.release import in_build, tried_contexts
from provisiond.templating.render import Renderer
from provisiond.templating.served import kinds_served, needs_boot_files
from provisiond.templating.validators import validate_many

REMEMBERED = 20_000  # verdicts and differences kept by digest


@dataclass(frozen=True)
class Text:
    """What came of one kind for one host: ``text``, or the ``error``."""

    template: str
    text: str = ""
    error: str = ""
    seconds: float = 0.0


@dataclass
class HostFound:
    """What was found for one host. ``findings`` are digests."""

    host_id: str
    name: str
    failing: bool = False
    findings: list[str] = field(default_factory=list)
    seconds: float = 0.0
    seconds_before: float = 0.0
    size: int = 0
    size_before: int = 0

    @property
    def outcome(self) -> str:
        return "failing" if self.failing else "changed" if self.findings else "unchanged"


@dataclass(frozen=True)
class Finding:
    """One difference or failure; see ShadowDiff for ``kind``."""

    kind: str
    template: str
    text: str

    @cached_property
    def digest(self) -> str:
        return digest(self.kind, self.template, self.text)


@dataclass
class Found:
    """What a chunk of hosts came to. ``skipped`` counts, by its sentence, what could not be validated."""

    hosts: list[HostFound] = field(default_factory=list)
    findings: dict[str, Finding] = field(default_factory=dict)
    skipped: dict[str, int] = field(default_factory=dict)
    validated: int = 0
    checked: int = 0


@dataclass
class _Waiting:
    """A text whose verdict is not known yet, and who waits for it."""

    kind: str
    family: str
    version: str
    text: str
    template: str
    users: list[tuple[HostFound, OwnValues, bool]] = field(default_factory=list)


class Comparer:
    """``renderer_of`` gives the renderer of a release by its id; ``standing`` says what is current where."""

    def __init__(
        self,
        release_id: str,
        renderer_of: Callable[[str], Renderer],
        standing: Standing,
        *,
        boot_url: str,
        authorized_keys: Sequence[str] = (),
        validating: bool = True,
    ) -> None:
        self._release_id, self._renderer_of, self._standing = release_id, renderer_of, standing
        self._urls = BuildUrls.of(boot_url, "TOKEN")
        self._keys, self._validating = tuple(authorized_keys), validating
        self._verdicts: dict[str, tuple[str, tuple[str, ...]]] = {}
        self._differences: dict[str, Finding] = {}
        self._wholes: dict[tuple[str, str], str] = {}

    def compare(self, hosts: Sequence[ResolvedHost]) -> Found:
        """Look at these hosts, which are resolved. Never raises for what is wrong with a template or a host."""
        found, waiting = Found(), dict[str, _Waiting]()
        for host in hosts:
            found.hosts.append(self._host(host, found, waiting))
        self._validate(waiting, found)
        if len(self._verdicts) > REMEMBERED:
            self._verdicts.clear()
        if len(self._differences) > REMEMBERED:
            self._differences.clear()
        return found

    def _host(self, host: ResolvedHost, found: Found, waiting: dict[str, _Waiting]) -> HostFound:
        seen = HostFound(host.id, host.name)
        own = own_values(host)
        hidden = secrets_of(host)
        host = in_build(host, None)
        new_id, old_id = self._release_id, self._current_for(host)
        new, old = self._renderer_of(new_id), self._renderer_of(old_id)
        try:
            kinds, kinds_before = kinds_served(host, new.catalogue), kinds_served(host, old.catalogue)
        except RenderError as error:
            self._fail(seen, found, error.template, blank(error.reason, own), already=True)
            return seen
        contexts = tried_contexts(host, self._urls, self._keys, next_build=True)
        for kind, kind_before in zip(kinds, kinds_before, strict=True):
            after = _render(new, kind, host, contexts[needs_boot_files(kind)])
            same = kind == kind_before and self._whole(new_id, kind, host) == self._whole(old_id, kind, host)
            before = after if same else _render(old, kind_before, host, contexts[needs_boot_files(kind)])
            seen.seconds += after.seconds
            seen.seconds_before += before.seconds
            seen.size += len(after.text.encode())
            seen.size_before += len(before.text.encode())
            if after.error:
                said = blank(blank(after.error, own), hidden)
                self._fail(seen, found, after.template, said, already=bool(before.error))
                continue
            if before.error:
                said = blank(blank(before.error, own), hidden)
                self._note(
                    seen,
                    found,
                    Finding("changed", after.template, f"+ renders; what is current does not: {said}"),
                )
            elif not same and before.text != after.text:
                seen_kinds = (kind_before, kind)
                self._note(seen, found, self._changed(host, seen_kinds, (before, after), own, hidden))
            if self._validating:
                self._wait(waiting, host, kind, after, own, seen, unchanged=before.text == after.text)
        return seen

    # --- differences ---------------------------------------------------------------------------------------

    def _changed(
        self, host: ResolvedHost, kinds: tuple[str, str], texts: tuple[Text, Text], own: OwnValues, hidden: OwnValues
    ) -> Finding:  # fmt: skip
        """The difference as it may be shown: of texts rendered with masked secrets, made once for all hosts alike."""
        template = texts[1].template
        blanked = [blank(blank(text.text, own), hidden) for text in texts]
        key = _hash(template, *blanked)
        if key not in self._differences:
            masked = host.with_parameters(mask(host.parameters))
            contexts = tried_contexts(masked, self._urls, self._keys, next_build=True)
            shown = [
                _render(self._renderer_of(release_id), kind, masked, contexts[needs_boot_files(kind)])
                for release_id, kind in zip((self._current_for(host), self._release_id), kinds, strict=True)
            ]
            if any(text.error for text in shown):
                said = "(it changes, but cannot be shown: it cannot be rendered with its secrets masked)"
            elif shown[0].text == shown[1].text:
                said = "(only values that are secrets by their names change)"
            else:
                said = difference(blank(shown[0].text, own), blank(shown[1].text, own))
            self._differences[key] = Finding("changed", template, said)
        return self._differences[key]

    def _current_for(self, host: ResolvedHost) -> str:
        """The release a build of this host would get now; the one that is looked at where none is current yet."""
        try:
            return release_for(host.id, host.group_ids, self._standing)
        except NotFound:
            return self._release_id

    def _whole(self, release_id: str, kind: str, host: ResolvedHost) -> str:
        """Stands for the kind's template with all it includes: where two are equal, so is what they make of the same host."""
        renderer = self._renderer_of(release_id)
        try:
            template = renderer.find(kind, *host.family_version)
            if (release_id, template) not in self._wholes:
                files = [(path, renderer.catalogue.files[path]) for path in renderer.with_included(template)]
                self._wholes[release_id, template] = _hash(*(part for file in files for part in file))
            return self._wholes[release_id, template]
        except ProvisiondError:
            return release_id

    def _fail(self, seen: HostFound, found: Found, template: str, said: str, *, already: bool) -> None:
        seen.failing = True
        self._note(seen, found, Finding("failing-already" if already else "failing", template, said))

    def _note(self, seen: HostFound, found: Found, finding: Finding) -> None:
        found.findings.setdefault(finding.digest, finding)
        if finding.digest not in seen.findings:
            seen.findings.append(finding.digest)

    # --- validators ----------------------------------------------------------------------------------------

    def _wait(
        self, waiting: dict[str, _Waiting], host: ResolvedHost, kind: str, after: Text, own: OwnValues, seen: HostFound,
        *, unchanged: bool,
    ) -> None:  # fmt: skip
        family, version = host.family_version
        key = _hash(kind, family, version, shape(own), blank(after.text, own))
        place = waiting.setdefault(key, _Waiting(kind, family, version, after.text, after.template))
        place.users.append((seen, own, unchanged))

    def _validate(self, waiting: Mapping[str, _Waiting], found: Found) -> None:
        """Get the verdicts that are not known yet, all of one kind at once, and tell them to the hosts."""
        batches: dict[tuple[str, str, str], list[str]] = {}
        for key, place in waiting.items():
            found.checked += len(place.users)
            if key not in self._verdicts:
                batches.setdefault((place.kind, place.family, place.version), []).append(key)
        for (kind, family, version), keys in batches.items():
            try:
                given = validate_many(kind, [waiting[k].text for k in keys], family=family, version=version)
            except Exception as error:  # a validator that breaks has looked at nothing
                said = f"{kind}: the validator broke: {type(error).__name__}"
                self._verdicts.update(dict.fromkeys(keys, ("", (said,))))
                continue
            found.validated += len(keys)
            for key, verdict in zip(keys, given, strict=True):
                own = waiting[key].users[0][1]
                problems = "; ".join(blank(str(p), own) for p in verdict.problems)
                self._verdicts[key] = f"{verdict.validator}: {problems}" if problems else "", verdict.skipped
        for key, place in waiting.items():
            problem, skipped = self._verdicts[key]
            for sentence in skipped:
                found.skipped[sentence] = found.skipped.get(sentence, 0) + len(place.users)
            if problem:
                for seen, _own, unchanged in place.users:
                    self._fail(seen, found, place.template, problem, already=unchanged)


def _render(renderer: Renderer, kind: str, host: ResolvedHost, context: Mapping[str, Any]) -> Text:
    begun = time.perf_counter()
    template = kind
    system = host.operating_system
    try:
        template = renderer.find(kind, *host.family_version)
        text = renderer.render(template, context)
        return Text(template, text, seconds=time.perf_counter() - begun)
    except NotFound:
        what = f"{system.family} {system.version}" if system else "a host without an operating system"
        return Text(
            kind, error=f"there is no {kind} template for {what}", seconds=time.perf_counter() - begun
        )
    except RenderError as error:
        place = f"{error.template}:{error.line}" if error.line else error.template
        said = error.reason.replace(f" (rendered for host {host.name})", "")
        if place != template:
            said = f"{place}: {said}"
        return Text(template, error=said, seconds=time.perf_counter() - begun)
    except ProvisiondError as error:
        return Text(template, error=str(error), seconds=time.perf_counter() - begun)


def _hash(*parts: str) -> str:
    total = hashlib.blake2b(digest_size=20)
    for part in parts:
        encoded = part.encode(errors="replace")
        total.update(len(encoded).to_bytes(8, "big") + encoded)
    return total.hexdigest()
