"""deploy/serve.yaml fits Ray's schema and the application's arguments."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve.schema import LoggingConfig, ServeApplicationSchema, ServeDeploySchema

from serving.app import BuildArgs, build
from serving.cluster.local import NAME
from serving.config.sources import SettingsError


@pytest.fixture
def deploy(project_root: Path) -> dict[str, Any]:
    parsed: dict[str, Any] = yaml.safe_load((project_root / "deploy" / "serve.yaml").read_text())
    return parsed


def unknown_keys(given: dict[str, Any], model: type[BaseModel]) -> list[str]:
    return sorted(set(given) - set(model.model_fields))


def all_unknown_keys(deploy: dict[str, Any]) -> list[str]:
    """Keys that Ray would ignore silently."""
    http = ServeDeploySchema.model_fields["http_options"].annotation
    assert http is not None
    return [
        *unknown_keys(deploy, ServeDeploySchema),
        *unknown_keys(deploy["http_options"], http),
        *unknown_keys(deploy["logging_config"], LoggingConfig),
        *(
            key
            for app in deploy["applications"]
            for key in unknown_keys(app, ServeApplicationSchema)
        ),
    ]


def test_ray_accepts_the_file_and_knows_every_key_of_it(deploy: dict[str, Any]) -> None:
    parsed = ServeDeploySchema.model_validate(deploy)
    assert [app.import_path for app in parsed.applications] == ["serving.app:build"]
    assert all_unknown_keys(deploy) == []


@pytest.mark.parametrize("part", [(), ("http_options",), ("logging_config",), ("applications", 0)])
def test_a_misspelt_key_is_noticed(deploy: dict[str, Any], part: tuple[str | int, ...]) -> None:
    misspelt = copy.deepcopy(deploy)
    inner: Any = misspelt
    for step in part:
        inner = inner[step]
    inner["prot"] = 8000
    assert all_unknown_keys(misspelt) == ["prot"]


def test_the_application_is_found_by_the_name_that_lethe_serve_gives_it(
    deploy: dict[str, Any],
) -> None:
    (app,) = deploy["applications"]
    assert (app["name"], app["route_prefix"]) == (NAME, "/")
    assert "deployments" not in app, "the settings file says how many replicas there are"


def test_the_arguments_are_what_build_takes(deploy: dict[str, Any]) -> None:
    (app,) = deploy["applications"]
    assert BuildArgs.model_validate(app["args"]).config == Path("/etc/lethe/lethe.toml")
    # Called as Ray's own build task calls it. The file doesn't exist on this machine.
    with pytest.raises(SettingsError, match="does not exist"):
        call_user_app_builder_with_args_if_necessary(build, {"config": "/nonexistent/lethe.toml"})
    with pytest.raises(ValidationError, match="confg"):
        call_user_app_builder_with_args_if_necessary(build, {"confg": "lethe.toml"})
