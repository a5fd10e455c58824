"""What those may see who may look but not change."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel

from provisiond.inventory.access import Principal
from provisiond.inventory.masking import mask

V = TypeVar("V", bound=BaseModel)


def for_eyes(view: V, who: Principal) -> V:
    """``view`` as ``who`` may see it: a viewer gets its parameters masked."""
    if who.role != "viewer" or not (parameters := getattr(view, "parameters", None)):
        return view
    return view.model_copy(update={"parameters": mask(parameters)})
