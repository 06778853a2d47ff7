"""What every `lethe` command has in common: its two streams, shared options, and how it fails.

A failure is one line on stderr and exit code 1; `--json` prints one JSON value on stdout.
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

# No markup: what is printed holds class names and paths, and those may hold brackets.
out = Console(markup=False)
err = Console(stderr=True, markup=False)

Config = Annotated[Path | None, typer.Option("--config", help="settings file [lethe.toml]")]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Turn what went wrong into one line and exit code 1."""
    try:
        yield
    except KeyboardInterrupt:
        raise typer.Exit(130) from None
    except Exception as error:
        if not _is_ours(error):
            raise
        fail(str(error))


def _is_ours(error: Exception) -> bool:
    # By name: importing the error classes would import torch, a second that `status` needn't wait.
    roots = {"forgetting", "registry", "serving"}
    return any(cls.__module__.split(".")[0] in roots for cls in type(error).__mro__)


def fail(message: str) -> NoReturn:
    words = Text.assemble(("lethe: ", "red"), " ".join(message.split()))
    err.print(words, highlight=False, soft_wrap=True)
    raise typer.Exit(1)


def print_json(data: Any) -> None:
    print(json.dumps(data, ensure_ascii=False))
