"""provisionctl: the operators' command line, a client of the API and nothing else."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from provisiond.ctl import (
    admin,
    deployments,
    discovery,
    erasures,
    flags,
    hosts,
    lint,
    machines,
    network,
    ramdisk,
    releases,
    rollouts,
    shadow,
    software,
    sources,
)
from provisiond.ctl.client import ApiProblem, Unreachable
from provisiond.ctl.common import FAILED, OK, Session, explain
from provisiond.ctl.config import SettingsError
from provisiond.ctl.output import Format

INTERRUPTED = 130  # as a shell says it

app = typer.Typer(
    name="provisionctl",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage, 3 cannot reach the daemon, 4 denied.",
)
app.add_typer(hosts.app, name="host")
app.add_typer(erasures.app, name="certificate")
app.add_typer(discovery.app, name="discovery")
app.add_typer(discovery.profile, name="profile")
app.add_typer(network.group, name="group")
app.add_typer(network.subnet, name="subnet")
app.add_typer(network.domain, name="domain")
app.add_typer(software.system, name="os")
app.add_typer(software.image, name="image")
app.add_typer(software.media, name="media")
app.add_typer(ramdisk.app, name="ramdisk")
app.add_typer(machines.hypervisor, name="hypervisor")
app.add_typer(machines.flavor, name="flavor")
app.add_typer(admin.template, name="template")
releases.app.add_typer(shadow.app, name="shadow")
app.add_typer(releases.app, name="release")
app.add_typer(deployments.app, name="deployment")
app.add_typer(sources.app, name="source")
app.add_typer(rollouts.app, name="rollout")
app.add_typer(flags.app, name="flag")
app.add_typer(admin.token, name="token")
app.add_typer(admin.user, name="user")
app.add_typer(admin.parameters, name="parameters")
admin.template.command("lint")(lint.lint)
app.command("whoami")(admin.whoami)
app.command("lifecycle")(admin.lifecycle)


@app.callback()
def options(
    context: typer.Context,
    output: Annotated[Format, typer.Option("--output", "-o", help="How answers are printed.")] = Format.TABLE,
    url: Annotated[
        str | None,
        typer.Option(help="The daemon: http://, https:// or unix:///PATH. Default: PROVISIOND_URL."),
    ] = None,
) -> None:
    """Take machines from 'exists' to 'in service' and back.

    The token comes from PROVISIOND_TOKEN, PROVISIOND_TOKEN_FILE or ~/.config/provisionctl.toml.
    """
    context.obj = Session(url=url, format=output)


def main() -> None:
    """Run, and end with the exit code that says how it went."""
    sys.exit(run(sys.argv[1:]))


def run(arguments: list[str]) -> int:
    """One invocation; returns its exit code."""
    try:
        app(arguments, prog_name="provisionctl")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else FAILED
    except (ApiProblem, Unreachable, SettingsError) as error:
        return explain(error)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
    return OK
