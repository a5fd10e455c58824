"""What the daemon hands in to the API."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

from provisiond.api.gather import Creates
from provisiond.config import Settings
from provisiond.inventory import access
from provisiond.inventory.access import Principal
from provisiond.inventory.secrets import SecretBox
from provisiond.inventory.store import Store
from provisiond.lifecycle.consoles import Consoles
from provisiond.media.jobs import MediaJobs
from provisiond.observe.follow import History
from provisiond.observe.health import Check
from provisiond.observe.metrics import Metrics
from provisiond.templating.release import Renderings
from provisiond.templating.sources import Sources


@dataclass
class ApiDeps:
    """Made by the composition root; ``history`` is started and closed there too. ``checks`` decide about /readyz."""

    store: Store
    box: SecretBox
    settings: Settings
    history: History
    metrics: Metrics
    consoles: Consoles
    media: MediaJobs
    renderings: Renderings
    boot_url: str
    checks: dict[str, Check] = field(default_factory=dict)

    @cached_property
    def creates(self) -> Creates:
        """The queue of creates."""
        return Creates(self.store, self.box)

    @cached_property
    def sources(self) -> Sources:
        """Where releases come from."""
        return Sources(self.store, self.box, self.settings)

    async def authenticate(self, token: str) -> Principal:
        """The bearer of ``token``. Raises Denied."""
        return await access.authenticate(self.store, token)

    def observe(self, route: str, method: str, status: int, seconds: float) -> None:
        """Count one answered request."""
        self.metrics.observe_request(route, method, status, seconds)
