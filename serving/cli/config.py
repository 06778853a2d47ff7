"""`lethe config`: shows every setting, its source, and every mistake."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from serving.cli import show
from serving.cli.terminal import Config, Json, err, out, plain_errors, print_json

MISTAKEN = 2
"""Exit code if there is a mistake."""


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    group = typer.Typer(no_args_is_help=True, help="Show the settings, their sources and mistakes.")
    group.callback()(_group)
    group.command()(check)
    app.add_typer(group, name="config")


def _group() -> None:
    """Show the settings, their sources and mistakes."""


def check(
    config: Config = None,
    port: Annotated[int | None, typer.Option("--port", help="as for `lethe serve`")] = None,
    replicas: Annotated[int | None, typer.Option("--replicas", help="as for `lethe serve`")] = None,
    registry: Annotated[str | None, typer.Option("--registry", help="as for `lethe serve`")] = None,
    as_json: Json = False,
) -> None:
    """Show every setting with its value, its source and its meaning; name every mistake."""
    with plain_errors():
        from serving.config.check import explain

        flags: dict[str, Any] = {"port": port, "replicas": replicas, "registry": registry}
        rows, mistakes = explain(config, flags)
        if as_json:
            print_json(
                {
                    "settings": [{**vars(row), "value": _plain(row.value)} for row in rows],
                    "mistakes": list(mistakes),
                }
            )
        else:
            show.settings(out, [(r.name, _plain(r.value), r.source, r.meaning) for r in rows])
        for mistake in mistakes:
            err.print(f"lethe: {mistake}", highlight=False, soft_wrap=True)
        if mistakes:
            raise typer.Exit(MISTAKEN)


def _plain(value: Any) -> Any:
    return str(value) if isinstance(value, Path) else value
