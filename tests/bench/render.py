"""Rendering a kickstart: one host in a warm process, and 1,000 hosts on one core, beside plain Jinja2 on the same input.

Plain Jinja2 is its Environment with the same templates, filters and contexts, without sandbox, meter, checks of parameters and the
guard against unquoted values. The other peer is Cobbler's published 4.0 s for 1,000 kickstarts. What is timed includes making the
context of each host from what the database gave. Times are of the processor, so that what else runs on the machine counts little.

Prints one figure a line: name, value, unit, peer.
"""

from __future__ import annotations

import os
import statistics
import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

from jinja2 import DictLoader, Environment, StrictUndefined
from jinja2.utils import Namespace

from provisiond.inventory.resolve import ResolvedHost
from provisiond.templating.catalogue import read_directory, shipped_directory
from provisiond.templating.context import BuildUrls, build_context
from provisiond.templating.fixtures import read_fixtures
from provisiond.templating.quoting import QUOTING
from provisiond.templating.render import Renderer

HOSTS = 1000
FIXTURE = "redhat-uefi-static"
KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIExample provisiond"


def fleet() -> list[ResolvedHost]:
    """A thousand hosts like the fixture, each with a name, an address and a parameter of its own."""
    like = read_fixtures([shipped_directory()])[FIXTURE].host()
    row = vars(SimpleNamespace(**like.row.model_dump()))
    hosts = []
    for number in range(HOSTS):
        first = replace(
            like.interfaces[0],
            mac=f"52:54:00:00:{number >> 8:02x}:{number & 255:02x}",
            ip=f"10.0.{number >> 8}.{number & 255}",
        )
        values = {**like.parameters, "timezone": f"Etc/GMT+{number % 12}"}
        hosts.append(
            replace(
                like,
                row=SimpleNamespace(**{**row, "id": f"host-{number}", "name": f"node{number:04}"}),  # type: ignore[arg-type]
                interfaces=(first, *like.interfaces[1:]),
                merged=replace(like.merged, values=values),
            )
        )
    return hosts


def plain_environment(files: dict[str, str]) -> Environment:
    """What somebody who did not care would use."""
    environment = Environment(
        loader=DictLoader(files), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
        auto_reload=False, cache_size=-1,
    )  # fmt: skip
    environment.filters.update(QUOTING)
    environment.globals.update(fail=_fail, flag=lambda name: False, namespace=Namespace)
    return environment


def _fail(why: str, key: str = "") -> None:
    raise ValueError(why)


def main() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    catalogue = read_directory(shipped_directory())
    renderer = Renderer(catalogue)
    hosts = fleet()
    system = hosts[0].operating_system
    assert system is not None
    template = renderer.find("kickstart", system.family, system.version)
    plain = plain_environment(dict(catalogue.files)).get_template(template)

    def context(host: ResolvedHost) -> dict[str, Any]:
        return build_context(host, BuildUrls.of("http://10.0.0.1:8421", "TOKEN"), authorized_keys=[KEY])

    def ours(host: ResolvedHost) -> str:
        return renderer.render(template, context(host))

    def theirs(host: ResolvedHost) -> str:
        given = context(host)
        given["parameters"] = renderer.filled(template, given["parameters"], host.name)
        return plain.render(given)

    assert ours(hosts[0]) == theirs(hosts[0])
    figures: dict[str, float] = {}
    for name, render in (("plain", theirs), ("ours", ours)):
        render(hosts[1])
        single, total = [], time.process_time()
        for host in hosts:
            begun = time.process_time()
            render(host)
            single.append((time.process_time() - begun) * 1000)
        figures[f"{name}_total"] = time.process_time() - total
        figures[f"{name}_p50"] = statistics.median(single)
        figures[f"{name}_p99"] = statistics.quantiles(single, n=100)[98]
    print(
        f"render_kickstart_p50 {figures['ours_p50']:.2f} ms asked:3,plain_jinja2:{figures['plain_p50']:.2f}"
    )
    print(f"render_kickstart_p99 {figures['ours_p99']:.2f} ms plain_jinja2:{figures['plain_p99']:.2f}")
    print(
        f"render_kickstart_1000 {figures['ours_total']:.2f} s asked:3,plain_jinja2:{figures['plain_total']:.2f},cobbler:4.0"
    )


if __name__ == "__main__":
    main()
