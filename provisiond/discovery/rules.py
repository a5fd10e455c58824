"""Discovery rules: an expression on facts, and what becomes of a discovered machine that it holds for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, model_validator
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from provisiond.discovery.expressions import MAX_LENGTH, Expression, NamePattern, expression, name_pattern
from provisiond.inventory.catalogue import Noun
from provisiond.inventory.fields import Line, Name, Parameters, plain_text
from provisiond.inventory.hardware_tables import DiscoveryRule
from provisiond.inventory.known import Known
from provisiond.inventory.network import NetworkDescription
from provisiond.inventory.shapes import Request
from provisiond.inventory.shapes_catalogue import Identified, partial
from provisiond.inventory.storage import StorageDescription
from provisiond.inventory.tables import Subnet, table

_rule, _subnet = table(DiscoveryRule), table(Subnet)
_RULES = select(_rule).where(_rule.c.enabled.is_(True)).order_by(_rule.c.priority.desc(), _rule.c.name)
_SUBNETS = select(_subnet.c.id, _subnet.c.name, _subnet.c.cidr)


def _expression(text: str) -> str:
    Expression(text)
    return text


def _pattern(text: str) -> str:
    if text:
        NamePattern(plain_text(text))
    return text


ExpressionText = Annotated[str, Field(max_length=MAX_LENGTH), AfterValidator(_expression)]


NamePatternText = Annotated[str, Field(max_length=256), AfterValidator(_pattern)]


class Rule(Request):
    """Of the rules that hold for a discovered machine the one of the highest ``priority`` counts; among equals, the first by name."""

    name: Name
    about: Line = ""
    priority: int = Field(0, ge=-1000, le=1000)
    enabled: bool = True
    expression: ExpressionText = Field(
        description="Such as vendor == 'Dell Inc.' and memory.mib >= 65536 (docs/discovery.md)."
    )
    group: Name | None = None
    profile: Name | None = Field(None, description="Hardware profile that its machines are compared with.")
    name_pattern: NamePatternText = Field(
        "", description="Such as node-{{ serial | lower }} or rack1-{{ pad(n, 3) }}."
    )
    storage: StorageDescription | None = None
    network: NetworkDescription | None = None
    parameters: Parameters = Field(default_factory=dict)
    approve: bool = Field(False, description="Take the machine in at once.")
    build: bool = Field(False, description="Build it then.")
    bmc_username: Annotated[str, Field(pattern=r"^([A-Za-z][A-Za-z0-9_.-]{0,15})?$")] = Field(
        "", description="Make this user with a random password on its controller."
    )

    @model_validator(mode="after")
    def _built_when_approved(self) -> Self:
        if self.build and not self.approve:
            raise ValueError("build needs approve: only a host that was taken in is built")
        return self


class RuleView(Identified, Rule):
    """A discovery rule as shown; ``taken`` is how many machines it was applied to."""

    taken: int


RULES = Noun(
    "discovery_rule",
    "discovery-rules",
    DiscoveryRule,
    Rule,
    partial(Rule),
    RuleView,
    references={"group": "group", "profile": "profile"},
)


async def known_rules(session: AsyncSession, known: Known) -> Sequence[Any]:
    """The rules that are enabled, in the order they are asked."""
    if known.rules is None:
        known.rules = (await session.execute(_RULES)).all()
    return known.rules  # type: ignore[no-any-return]


async def known_subnets(session: AsyncSession, known: Known) -> Sequence[Any]:
    """Every subnet's id, name and cidr."""
    if known.subnets is None:
        known.subnets = (await session.execute(_SUBNETS)).all()
    return known.subnets  # type: ignore[no-any-return]


def first_that_holds(rules: Sequence[Any], values: Mapping[str, Any]) -> Any:
    """The rule that takes the machine with these values (context.values_of), or None. Never raises."""
    for rule in rules:
        try:
            asked = expression(rule.expression)
        except ValueError:  # written by another version of provisiond, which knew other names
            continue
        if asked.holds(values)[0]:
            return rule
    return None


def pattern_of(rule: Any) -> NamePattern | None:
    """The rule's name pattern; None where it has none (or one that this version does not understand)."""
    try:
        return name_pattern(rule.name_pattern) if rule.name_pattern else None
    except ValueError:
        return None
