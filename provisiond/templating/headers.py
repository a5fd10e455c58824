"""The header of a template: the Jinja comment at its top, in YAML, that says what it is for and which parameters it takes."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from provisiond.errors import RenderError

_HEADER = re.compile(r"\{#-?\s*\n(?P<yaml>.*?)\n?-?#\}", re.DOTALL)
_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "boolean": (bool,),
    "list": (list, tuple),
    "mapping": (dict,),
}


class Parameter(BaseModel):
    """One parameter of a template. ``choices`` are the only values taken; ``nullable`` ones take null beside a default of their own."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    type: Literal["string", "integer", "boolean", "list", "mapping"]
    default: Any = None
    required: bool = False
    nullable: bool = False
    choices: tuple[str | int, ...] = ()
    about: str = Field(min_length=1)

    @model_validator(mode="after")
    def _default_fits(self) -> Parameter:
        if self.default is not None and (problem := self.check(self.default)):
            raise ValueError(f"its default {problem}")
        return self

    def check(self, value: Any) -> str:
        """What is wrong with ``value``, as the end of a sentence; empty when it fits. Null fits where it is the default, too."""
        if value is None:
            fits = self.nullable or (self.default is None and not self.required)
            return "" if fits else f"must be a {self.type}, not null"
        if not isinstance(value, _TYPES[self.type]) or (isinstance(value, bool) and self.type != "boolean"):
            return f"must be a {self.type}, not {type(value).__name__}"
        if self.choices and value not in self.choices:
            return f"must be one of {', '.join(map(str, self.choices))}"
        return ""


class Header(BaseModel):
    """What a template says of itself. ``versions`` match as prefixes (``9`` takes ``9.4``); none of them means all.

    ``flags`` are the feature flags it asks for, with a line about each.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: str = Field(pattern=r"^[a-z][a-z0-9-]*$")
    about: str = Field(min_length=1)
    families: tuple[str, ...] = ()
    versions: tuple[str, ...] = ()
    parameters: dict[str, Parameter] = Field(default_factory=dict)
    flags: dict[Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,63}$")], str] = Field(
        default_factory=dict
    )
    fixtures: tuple[str, ...] = ()

    def fits(self, family: str, version: str) -> int:
        """How well this template suits: 0 not at all, 1 for anything, 2 for the family, more for a longer version prefix."""
        if not self.families:
            return 1
        if family not in self.families:
            return 0
        if not self.versions:
            return 2
        return max(
            (3 + len(v) for v in self.versions if version == v or version.startswith(v + ".")), default=0
        )


def parse_header(path: str, text: str) -> Header:
    """The header of the template ``path``. Raises RenderError that names every wrong key."""
    found = _HEADER.match(text)
    if not found:
        raise RenderError(
            path,
            "it does not begin with a header: a Jinja comment in YAML with kind, about, parameters ...",
            line=1,
        )
    try:
        return Header.model_validate(yaml.safe_load(found["yaml"]) or {})
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise RenderError(
            path, f"its header is not YAML: {error}", line=mark.line + 2 if mark else 1
        ) from None
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors())
        raise RenderError(path, f"its header is wrong: {wrong}", line=1) from None
