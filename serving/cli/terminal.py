"""What all `lethe` commands share: output streams, options, and how they fail.

A command that fails prints one line on stderr and exits with 1. `--json` prints one JSON value on
stdout.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.text import Text

# No markup: class names and paths are printed, and they may contain brackets.
out = Console(markup=False)
err = Console(stderr=True, markup=False)

Config = Annotated[Path | None, typer.Option("--config", help="settings file [lethe.toml]")]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Turn an error of this project into one line on stderr and exit code 1."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except Exception as error:
        if not _is_ours(error):
            raise
        fail(str(error))


def _is_ours(error: Exception) -> bool:
    # By the module's name: importing the error classes would import torch and cost a second.
    roots = {"forgetting", "registry", "serving"}
    return any(cls.__module__.split(".")[0] in roots for cls in type(error).__mro__)


def fail(message: str) -> NoReturn:
    words = Text.assemble(("lethe: ", "red"), " ".join(message.split()))
    err.print(words, highlight=False, soft_wrap=True)
    raise typer.Exit(1)


def print_json(data: Any) -> None:
    print(json.dumps(data, ensure_ascii=False))
