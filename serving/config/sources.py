"""Loads settings from flags, the environment and `lethe.toml`. The first source that names a
setting wins, in this order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, TomlConfigSettingsSource
from pydantic_settings.exceptions import SettingsError as SourceError

from serving.config.settings import DIGITS, Settings, is_url
from serving.errors import ServingError


class SettingsError(ServingError):
    """A setting is wrong; the message says which, and what was expected."""


def load_settings(config: Path | None = None, **flags: Any) -> Settings:
    """Settings from `flags`, the environment and `config` (or ./lethe.toml if it exists).

    Flags that are None count as not given. Raises `SettingsError`, which names every mistake.
    """
    if config is not None and not config.is_file():
        raise SettingsError(f"settings file {config} does not exist")
    path = settings_path(config)
    try:
        loaded = _load(path, flags)
    except ValidationError as error:
        raise SettingsError("; ".join(_lines(error))) from None
    except SourceError as error:
        raise SettingsError(f"the environment: {error}") from None
    except ValueError as error:  # tomllib's
        raise SettingsError(f"{path} is not valid TOML: {error}") from None
    except OSError as error:
        raise SettingsError(f"can't read {path}: {error.strerror}") from None
    plain = {name: getattr(loaded, name) for name in Settings.model_fields}
    return _anchored(Settings.model_construct(**plain), config.parent if config else Path())


def settings_mistakes(config: Path | None, **flags: Any) -> list[str]:
    """What is wrong with the values, a line each. The sources themselves must be readable."""
    try:
        _load(settings_path(config), flags)
    except ValidationError as error:
        return _lines(error)
    return []


def settings_path(config: Path | None) -> Path:
    """The settings file, whether it exists or not."""
    return (config or Path("lethe.toml")).absolute()


def _lines(error: ValidationError) -> list[str]:
    return [f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']}" for e in error.errors()]


def _load(path: Path, flags: dict[str, Any]) -> Settings:
    class _FromFile(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            toml = TomlConfigSettingsSource(settings_cls, path)
            return init_settings, env_settings, toml

    return _FromFile(**{name: value for name, value in flags.items() if value is not None})


def _anchored(settings: Settings, folder: Path) -> Settings:
    """Make relative paths absolute, starting at `folder`: the settings file's, or the current one.
    Other processes read these settings, and their working directories differ."""

    def fixed(path: Path | None) -> Path | None:
        return None if path is None else (folder / path.expanduser()).absolute()

    chosen = settings.backbone
    backbone = chosen.model_copy(
        update={name: fixed(getattr(chosen, name)) for name in ("directory", "weights", "labels")}
    )
    probes = settings.probes.model_copy(update={"images": fixed(settings.probes.images)})
    registry = settings.registry
    if registry is not None and not is_url(registry):
        registry = fixed(Path(registry))
    images = settings.images if settings.images == DIGITS else str(fixed(Path(settings.images)))
    return settings.model_copy(
        update={
            "home": fixed(settings.home),
            "registry": registry,
            "images": images,
            "backbone": backbone,
            "probes": probes,
        }
    )
