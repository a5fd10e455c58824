"""provisioned: built; the first boot of the new system is awaited."""

from __future__ import annotations

from provisiond.inventory.resolve import ResolvedHost
from provisiond.lifecycle.outcome import Complete, Continue, Failed, Outcome, Step
from provisiond.lifecycle.world import World


async def first_boot(host: ResolvedHost, world: World) -> Outcome:
    """Waits for the new system to phone home with its SSH host keys."""
    deployment = host.deployment
    assert deployment is not None
    if deployment.phoned_home_at is not None:
        return Complete("the new system phoned home")
    if deployment.failed_at is not None:
        return Failed(
            f"{deployment.failure or f'the first boot of host {host.name} failed'}; see its console, then "
            f"'provisionctl host rebuild {host.name}', or mend the machine by hand and 'provisionctl host retry {host.name}'",
            retryable=False, kind="first-boot",
        )  # fmt: skip
    return Continue("waiting for the new system to phone home")


STEPS = (Step("first-boot", first_boot),)
