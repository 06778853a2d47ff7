"""The work of `lethe config check`: list every setting with its source, and every mistake."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from operator import attrgetter
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_settings import EnvSettingsSource, TomlConfigSettingsSource
from pydantic_settings.exceptions import SettingsError as SourceError

from forgetting.report.gates import GateConfig
from forgetting.training.config import TrainConfig
from serving.config.settings import DIGITS, Settings
from serving.config.sources import SettingsError, load_settings, settings_mistakes, settings_path

OTHER_VARIABLES = (
    "LETHE_DASHBOARDS",
    "LETHE_DATA",
    "LETHE_OPERATOR_URL",
    "LETHE_REQUIRE_PROMTOOL",
    "LETHE_URL",
)
"""LETHE_* variables that are not settings: tests, Grafana and CLI commands read them."""
AT_LEAST_ONE = ("select_steps", "refit_steps", "forget_batch", "retain_batch", "check_every")
"""Keys of `[forget.train]` that must not be 0: with any of them at 0 training learns nothing."""
PATHS = {
    "images": "folder",
    "probes.images": "folder",
    "backbone.directory": "folder",
    "backbone.weights": "file",
    "backbone.labels": "file",
}


@dataclass(frozen=True)
class Explained:
    """One setting, as `lethe config check` prints it."""

    name: str
    """Dotted, as in `lease.seconds`."""
    value: Any
    source: str
    """What sets the value: a flag, a variable, a file's name, or "default"."""
    meaning: str


def explain(
    config: Path | None, flags: Mapping[str, Any]
) -> tuple[tuple[Explained, ...], tuple[str, ...]]:
    """Every setting, and every mistake. If there is a mistake, values are shown as given."""
    given, mistakes = _given(config, flags)
    mistakes += _unknown_variables()
    readable = not mistakes
    if readable:
        mistakes += settings_mistakes(config, **flags)
    mistakes += _forget_mistakes({name: value for name, (value, _) in given.items()})
    mistakes += _absent_paths(given, config.parent if config else Path())
    settings = None if mistakes else load_settings(config, **flags)
    rows = []
    for name, field in _leaves(Settings):
        value, source = given.get(name, (field.get_default(call_default_factory=True), "default"))
        if settings is not None:
            value = attrgetter(name)(settings)
        rows.append(Explained(name, value, source, field.description or ""))
    return tuple(rows), tuple(mistakes)


def check_forget(settings: Settings) -> None:
    """Raises `SettingsError` when [forget.train] or [forget.gates] has an unknown key or a bad
    value."""
    forget = settings.forget
    mistakes = _forget_mistakes({"forget.train": forget.train, "forget.gates": forget.gates})
    if mistakes:
        raise SettingsError("; ".join(mistakes))


def _forget_mistakes(given: Mapping[str, Any]) -> list[str]:
    mistakes = []
    for section, kind in (("forget.train", TrainConfig), ("forget.gates", GateConfig)):
        values = given.get(section, {})
        known = {field.name for field in fields(kind)}
        for name, value in values.items() if isinstance(values, Mapping) else ():
            if name not in known:
                mistakes.append(f"{section} has no {name}; it has {', '.join(sorted(known))}")
                continue
            default = getattr(kind(), name)
            whole = default is None or isinstance(default, int)
            fits = isinstance(value, int) if whole else _is_number(value)
            if not fits or isinstance(value, bool) or value < 0:
                like = "a whole number" if default is None else f"something like {default!r}"
                mistakes.append(f"{section}.{name} is {value!r}; expected {like}")
            elif name in AT_LEAST_ONE and value == 0:
                mistakes.append(f"{section}.{name} is 0; expected 1 or more")
    return mistakes


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)


def _given(
    config: Path | None, flags: Mapping[str, Any]
) -> tuple[dict[str, tuple[Any, str]], list[str]]:
    """(value, source) of every setting that is given, and why a source can't be read."""
    found: dict[str, tuple[Any, str]] = {}
    mistakes = []
    path = settings_path(config)
    if config is not None and not config.is_file():
        mistakes.append(f"settings file {config} does not exist")
    else:
        try:
            for name, value in _flat(TomlConfigSettingsSource(Settings, path)()):
                found[name] = value, str(config or path.name)
        except ValueError as error:  # tomllib's
            mistakes.append(f"{path} is not valid TOML: {error}")
        except OSError as error:
            mistakes.append(f"can't read {path}: {error.strerror}")
    try:
        for name, value in _flat(EnvSettingsSource(Settings)()):
            found[name] = value, f"LETHE_{name.upper().replace('.', '__')}"
    except SourceError as error:
        mistakes.append(f"the environment: {error}")
    for name, value in _flat({name: value for name, value in flags.items() if value is not None}):
        found[name] = value, f"--{name}"
    return found, mistakes


def _unknown_variables() -> list[str]:
    """A mistake for each LETHE_* variable that sets nothing: it may be misspelt."""
    known = {f"LETHE_{name.upper().replace('.', '__')}" for name, _ in _leaves(Settings)}
    sections = {name for name, _ in Settings.model_fields.items()}
    known |= {f"LETHE_{name.upper()}" for name in sections} | set(OTHER_VARIABLES)
    free = tuple(f"{name}__" for name in known)  # an item of a setting that is a table
    return [
        f"{name}: there is no such setting"
        for name in sorted(os.environ)
        if name.startswith("LETHE_") and name not in known and not name.startswith(free)
    ]


def _absent_paths(given: Mapping[str, tuple[Any, str]], folder: Path) -> Iterator[str]:
    """A mistake for each file or folder that a setting names and that doesn't exist.

    Relative paths start at `folder`.
    """
    for name, kind in PATHS.items():
        value, _ = given.get(name, (None, ""))
        if not isinstance(value, str | Path) or (name, value) == ("images", DIGITS):
            continue
        path = folder / Path(value).expanduser()
        if not (path.is_dir() if kind == "folder" else path.is_file()):
            yield f"{name}: there is no {kind} {path}"


def _leaves(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """(dotted name, field) of every setting."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from _leaves(kind, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", field


def _flat(given: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every setting that a source gives. Tables that are values stay
    whole."""
    leaves = {name for name, _ in _leaves(Settings)}

    def walk(inside: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
        for name, value in inside.items():
            dotted = f"{prefix}{name}"
            if isinstance(value, Mapping) and dotted not in leaves:
                yield from walk(value, f"{dotted}.")
            else:
                yield dotted, value

    return walk(given, "")
