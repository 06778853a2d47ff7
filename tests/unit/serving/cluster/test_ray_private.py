"""Everything that we use of Ray without a promise is in the installed Ray, under the same name."""

from __future__ import annotations

import asyncio
import inspect
import json
import mmap
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import ray
from ray._common.utils import get_default_ray_temp_dir
from ray._private import ray_constants
from ray._private.authentication import authentication_token_setup
from ray._raylet import Config
from ray.exceptions import RayTaskError
from ray.serve import config as serve_config
from ray.serve._private import constants as serve_constants
from ray.serve._private.grpc_util import gRPCGenericServer
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from serving.api.inference_protocol import rpc
from serving.api.routes.grpc import GrpcRecognizer
from serving.app import SERVICERS
from serving.cluster.process_state import environment, log_levels, signal_handlers
from serving.cluster.ray_private import (
    LOGGER_OF_RAY,
    LOGGER_OF_SERVE,
    STARTUP_TIMED_OUT,
    UNEXPORTED,
    Variable,
    init_options,
    keep_token_private,
    node_log,
    token_file,
)
from serving.replica.recognizer import Recognizer

RAY = Path(ray.__file__).parent
RAYLET = RAY / "core" / "src" / "ray" / "raylet" / "raylet"
OPTIONS = init_options(cpus=1, namespace="lethe", metrics_port=None)

# Imports what Ray's processes import when they start, and prints which environment variables they
# looked up, and what they made of two of them.
START = """
import json, os

class Watched(type(os.environ)):
    seen = set()

    def __getitem__(self, name):
        self.seen.add(name)
        return super().__getitem__(name)

    def __contains__(self, name):
        self.seen.add(name)
        return super().__contains__(name)

os.environ.__class__ = Watched
from ray.dashboard.modules.reporter.reporter_consts import REPORTER_UPDATE_INTERVAL_MS
from ray.serve._private.constants import RAY_SERVE_METRICS_EXPORT_INTERVAL_MS
intervals = [REPORTER_UPDATE_INTERVAL_MS, RAY_SERVE_METRICS_EXPORT_INTERVAL_MS]
print(json.dumps({"seen": sorted(Watched.seen), "intervals": intervals}))
"""


@pytest.fixture(scope="module")
def start() -> dict[str, Any]:
    """What `START` printed, in an environment with `UNEXPORTED`."""
    found = subprocess.run(
        [sys.executable, "-c", START],
        env={**os.environ, **UNEXPORTED},
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(json.loads(found.stdout))


def refused_arguments(options: dict[str, Any]) -> set[str]:
    """The keyword arguments that `ray.init` does not know. It refuses them before it starts
    anything; one is added, so that it always does."""
    with (
        environment({}),
        signal_handlers(),
        log_levels(LOGGER_OF_RAY),
        pytest.raises(RuntimeError, match="Unknown keyword argument") as refused,
    ):
        ray.init("local", **options, _of_no_ray=None)
    return set(str(refused.value).partition(": ")[2].split(", ")) - {"_of_no_ray"}


def read_config(config: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    """Have a process read `config` as every C++ process of Ray does."""
    code = "import sys; from ray._raylet import Config; Config.initialize(sys.argv[1])"
    command = [sys.executable, "-c", code, json.dumps(config)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def in_source(text: str, folders: Sequence[str]) -> bool:
    """Whether Ray's Python source in `folders` holds `text`."""
    return any(
        text in path.read_text() for folder in folders for path in (RAY / folder).rglob("*.py")
    )


def in_raylet(name: str) -> bool:
    """Whether the program of Ray's nodes holds the string `name`, whole."""
    with RAYLET.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return data.find(b"\0" + name.encode() + b"\0") >= 0


def renamed(name: str) -> str:
    return name[:-1] + ("X" if name[-1] != "X" else "Y")


def test_ray_reads_every_environment_variable_that_we_set(start: dict[str, Any]) -> None:
    assert set(Variable) <= set(start["seen"])


def test_a_renamed_environment_variable_is_noticed(start: dict[str, Any]) -> None:
    assert not {renamed(name) for name in Variable} & set(start["seen"])


def test_a_ray_without_an_exporter_works_as_seldom_as_we_ask(start: dict[str, Any]) -> None:
    assert start["intervals"] == [int(milliseconds) for milliseconds in UNEXPORTED.values()]


def test_ray_takes_every_argument_of_its_start() -> None:
    assert refused_arguments(OPTIONS) == set()


def test_a_renamed_argument_of_the_start_is_noticed() -> None:
    private = {name for name in OPTIONS if name.startswith("_")}
    assert private
    others = {renamed(name) for name in OPTIONS}
    assert refused_arguments(dict.fromkeys(others)) == others


def test_rays_processes_take_every_option_of_ours() -> None:
    read = read_config(OPTIONS["_system_config"])
    assert read.returncode == 0, read.stderr


def test_a_renamed_option_of_rays_processes_is_noticed() -> None:
    (*others, last) = OPTIONS["_system_config"]
    read = read_config({**dict.fromkeys(others, 0), renamed(last): 0})
    assert read.returncode != 0
    assert f"unexpected config parameter {renamed(last)}" in read.stderr


def test_ray_says_that_a_start_timed_out_in_the_words_that_we_look_for() -> None:
    assert STARTUP_TIMED_OUT in inspect.getsource(ray._private.node)


def make_token() -> None:
    """Have Ray write a token unless it finds one, as a start does."""
    with environment({authentication_token_setup.AUTH_MODE_ENV_VAR: "token"}):
        Config.initialize("")
        authentication_token_setup.ensure_token_if_auth_enabled()


def test_the_token_lies_where_ray_writes_it_and_anybody_may_read_it(home: Path) -> None:
    make_token()
    assert token_file().is_relative_to(home)
    assert token_file().read_text()
    assert token_file().stat().st_mode & 0o077, "keep_token_private is no longer needed"
    keep_token_private()
    assert token_file().stat().st_mode & 0o777 == 0o600


def test_a_token_that_ray_is_yet_to_make_will_be_private(home: Path) -> None:
    keep_token_private()
    assert token_file().read_text() == ""
    make_token()
    assert token_file().read_text()
    assert token_file().stat().st_mode & 0o777 == 0o600


def test_a_home_that_can_hold_no_token_stops_no_start(home: Path) -> None:
    (home / ".ray").touch()
    keep_token_private()
    assert (home / ".ray").is_file()


@pytest.mark.parametrize(
    "variables",
    [{}, {"TMPDIR": "/one"}, {"RAY_TMPDIR": "/two"}, {"TMPDIR": "/one", "RAY_TMPDIR": "/two"}],
)
def test_the_log_lies_in_rays_folder(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]
) -> None:
    for name in ("TMPDIR", "RAY_TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    session = Path(get_default_ray_temp_dir()) / ray_constants.SESSION_LATEST
    assert node_log() == session / "logs" / "raylet.out"


def test_the_loggers_have_the_names_that_ray_gives_them() -> None:
    assert serve_constants.SERVE_LOGGER_NAME == LOGGER_OF_SERVE
    assert ray._private.worker.logger.name.split(".")[0] == LOGGER_OF_RAY


def test_serve_calls_a_replicas_health_check_by_the_name_that_it_has() -> None:
    assert callable(getattr(Recognizer, serve_constants.HEALTH_CHECK_METHOD))


def test_a_handle_can_call_a_method_of_every_replica() -> None:
    method, notice, patience = (
        inspect.signature(DeploymentHandle.broadcast).bind(None, "drain", 0.5, 1.0).args[1:]
    )
    inspect.signature(Recognizer.drain).bind(None, notice, patience)
    assert callable(getattr(Recognizer, method))


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        (serve_config.HTTPOptions, {"host", "port"}),
        (serve_config.gRPCOptions, {"port", "grpc_servicer_functions", "enable_reflection"}),
        (
            serve_config.AutoscalingConfig,
            {
                "min_replicas",
                "max_replicas",
                "target_ongoing_requests",
                "metrics_interval_s",
                "look_back_period_s",
                "upscale_delay_s",
                "downscale_delay_s",
            },
        ),
        (LoggingConfig, {"enable_access_log", "log_level"}),
    ],
)
def test_serve_has_the_settings_that_we_make(model: Any, fields: set[str]) -> None:
    """Some of these models ignore what they don't know."""
    assert fields <= set(model.model_fields)


def test_serves_grpc_server_learns_our_methods() -> None:
    options = serve_config.gRPCOptions(grpc_servicer_functions=list(SERVICERS))
    learnt: set[str] = set()

    def handler_of(service_method: str, streaming_type: object) -> Any:
        learnt.add(service_method)
        return lambda: None

    async def learn() -> None:  # grpc.aio needs a running loop
        server = gRPCGenericServer(handler_of)
        for add in options.grpc_servicer_func_callable:
            add(GrpcRecognizer, server)

    asyncio.run(learn())
    assert learnt == {f"/{rpc.SERVICE}/{method}" for method in rpc.METHODS}


def test_what_an_actor_raised_is_the_cause_of_rays_error() -> None:
    raised = OSError("full")
    assert RayTaskError("a method", "its traceback", raised).cause is raised


def test_ray_knows_every_variable_that_the_documentation_and_the_tests_name(
    project_root: Path,
) -> None:
    files = [project_root / "README.md", *(project_root / "tests" / "e2e").glob("*.py")]
    files += [path for folder in ("docs", "deploy") for path in (project_root / folder).rglob("*")]
    names = {
        name
        for path in files
        if path.is_file()
        for name in re.findall(r"\bRAY_[A-Za-z_]+[A-Za-z]\b", path.read_text())
    }
    assert {"RAY_worker_niceness", "RAY_SERVE_ENABLE_HA_PROXY"} <= names
    folders = ("_common", "_private", "serve")
    assert {n for n in names if not in_source(f'"{n}"', folders) and not in_raylet(n)} == set()
    others = {renamed(name) for name in names}
    assert {n for n in others if in_source(f'"{n}"', folders) or in_raylet(n)} == set()
