"""Users and tokens. A token's text is shown once, in the answer that makes it."""

from __future__ import annotations

from provisiond.api.deps import ApiDeps
from provisiond.api.routing import RANK, Answer
from provisiond.errors import Denied
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
