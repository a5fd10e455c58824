"""provisionctl template lint: a directory of templates, rendered on made-up hosts and validated here, without a daemon."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from provisiond.ctl.common import FAILED, session, usage
from provisiond.ctl.output import Format, show_one, stderr, stdout


def lint(
    context: typer.Context,
    directory: Annotated[Path, typer.Argument(help="Directory of templates, as templates.dir names one.")],
    format: Annotated[
        Format | None, typer.Option("--format", help="How the result is printed; default: --output.")
    ] = None,
    keep_going: Annotated[
        bool, typer.Option("--keep-going", "-k", help="Look at all families, also after one has failed.")
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Fail where a validator is missing or a template has no fixture.")
    ] = False,
    fetch: Annotated[
        bool, typer.Option("--fetch", help="Fetch cloud-init's Debian package for its schema, by apt-get, if it is not here.")
    ] = False,
) -> None:  # fmt: skip
    """Render every template on the fixtures of its header and run the validators; end non-zero at the first family that fails.

    Needs no daemon. Each problem is told with file and line; a validator that is not installed, by its name.
    """
    # everything below is the daemon's: only this command pays for its import (docs/adr/0010)
    from provisiond.errors import ProvisiondError
    from provisiond.templating.lint import Family, lint_directory
    from provisiond.templating.validators import cloud_init

    if not directory.is_dir():
        raise usage(f"there is no directory {directory}")
    form = format or session(context).format
    if fetch and cloud_init.home() is None and cloud_init.fetch() is None:
        stderr().print("cloud-init's package cannot be fetched by apt-get here", markup=False)
    families: list[Family] = []
    columns = TextColumn("[bold]{task.description}"), BarColumn(bar_width=24), MofNCompleteColumn()
    try:
        with Progress(
            *columns, console=stderr(), transient=True, disable=not sys.stderr.isatty()
        ) as progress:
            task = progress.add_task("reading", total=None)
            for family in lint_directory(
                directory,
                lambda name, done, total: progress.update(
                    task, description=name, completed=done, total=total
                ),
            ):
                families.append(family)
                if form is Format.TABLE:
                    _tell(family, directory, progress.console)
                if not keep_going and _failed(family, strict):
                    break
    except ProvisiondError as error:
        stderr().print(f"[bold red]error:[/] {escape(str(error))}")
        raise typer.Exit(FAILED) from None
    failed = [family for family in families if _failed(family, strict)]
    if form is Format.TABLE:
        _table(families)
    else:
        show_one(_document(directory, families), form)
    if failed:
        stderr().print(
            f"[bold red]failed:[/] {escape(', '.join(f.name for f in failed))}"
            + ("" if keep_going else "; those after it were not looked at (--keep-going)")
        )
        raise typer.Exit(FAILED)


def _failed(family: Any, strict: bool) -> bool:
    return bool(family.failed or (strict and family.count("skipped")))


def _tell(family: Any, directory: Path, console: Any) -> None:
    """The problems of one family, each as FILE:LINE, and once each what was skipped."""
    for result in family.results:
        for finding in result.findings:
            where = (
                f"{directory / finding.file}:{finding.line}"
                if finding.line
                else str(directory / finding.file)
            )
            console.print(f"[red]{escape(where)}[/]: {escape(finding.message)}", soft_wrap=True)
    skipped: dict[str, list[str]] = {}
    for result in family.results:
        for reason in result.skipped:
            skipped.setdefault(reason, []).append(result.template)
    for reason, templates in skipped.items():
        console.print(
            f"[yellow]{escape(family.name)}: skipped[/]: {escape(reason)} ({len(templates)} times)",
            soft_wrap=True,
        )


def _table(families: list[Any]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("FAMILY", "PASSED", "FAILED", "SKIPPED"):
        table.add_column(column, justify="left" if column == "FAMILY" else "right")
    for family in families:
        counts = [family.count(status) for status in ("passed", "failed", "skipped")]
        colours = ("green", "bold red", "yellow")
        cells = [f"[{c}]{n}[/]" if n else "0" for n, c in zip(counts, colours, strict=True)]
        table.add_row(escape(family.name), *cells)
    stdout().print(table)


def _document(directory: Path, families: list[Any]) -> dict[str, Any]:
    return {
        "directory": str(directory),
        **{status: sum(f.count(status) for f in families) for status in ("passed", "failed", "skipped")},
        "families": [family.document() for family in families],
    }
