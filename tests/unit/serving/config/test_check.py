"""`lethe config check`: every setting has a source, and every mistake is named at once."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from serving.cli.main import app
from serving.config.check import AT_LEAST_ONE, check_forget, explain
from serving.config.settings import Settings
from serving.config.sources import SettingsError, load_settings

RUNNER = CliRunner()


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("LETHE_PORT", "LETHE_HOME", "LETHE_LEASE__SECONDS", "LETHE_DATA"):
        monkeypatch.delenv(name, raising=False)


def test_each_setting_has_its_value_and_says_where_that_comes_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        "port = 1111\nreplicas = 5\n[lease]\nseconds = 4.0\n[forget.train]\nrefit_steps = 9\n"
    )
    monkeypatch.setenv("LETHE_LEASE__SECONDS", "6.0")
    rows, mistakes = explain(file, {"port": 3333, "replicas": None})
    assert mistakes == ()
    found = {row.name: (row.value, row.source) for row in rows}
    assert found["port"] == (3333, "--port")
    assert found["replicas"] == (5, str(file))
    assert found["lease.seconds"] == (6.0, "LETHE_LEASE__SECONDS")
    assert found["forget.train"] == ({"refit_steps": 9}, str(file))
    assert found["operator.port"] == (None, "default")
    assert all(row.meaning for row in rows)
    # The values shown are those that a server would use.
    chosen = load_settings(file, port=3333)
    assert found["home"][0] == chosen.home
    assert {name.split(".")[0] for name in found} == set(Settings.model_fields)


def test_every_mistake_is_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(
        "prot = 8000\nimages = 'absent'\n[lease]\nseconds = 1.0\n[batch]\nsize = 0\n"
        "[backbone]\ndirectory = 'nowhere'\n[forget.train]\nstep = 1\n"
    )
    result = RUNNER.invoke(app, ["config", "check", "--config", str(file)])
    assert result.exit_code == 2
    lines = [line for line in result.stderr.splitlines() if line.startswith("lethe: ")]
    for words in (
        "prot: Extra",
        "lease: Value error",
        "batch.size: ",
        "no folder",
        "nowhere",
        "no step;",
    ):
        assert [line for line in lines if words in line], (words, lines)
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    ("toml", "variable", "words"),
    [
        ("port = ", None, "not valid TOML"),
        ("", "LETHE_PROT", "LETHE_PROT: there is no such setting"),
    ],
)
def test_a_source_that_says_nothing_is_a_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toml: str, variable: str | None, words: str
) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(toml)
    if variable is not None:
        monkeypatch.setenv(variable, "1")
    result = RUNNER.invoke(app, ["config", "check", "--config", str(file)])
    assert (result.exit_code, words in result.stderr) == (2, True), result.stderr
    absent = RUNNER.invoke(app, ["config", "check", "--config", str(tmp_path / "absent.toml")])
    assert (absent.exit_code, "does not exist" in absent.stderr) == (2, True)


def test_good_settings_are_told_as_json() -> None:
    result = RUNNER.invoke(app, ["config", "check", "--json", "--port", "9000"])
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["mistakes"] == []
    (port,) = [row for row in said["settings"] if row["name"] == "port"]
    assert (port["value"], port["source"]) == (9000, "--port")


def test_a_start_refuses_what_training_does_not_know(tmp_path: Path) -> None:
    file = tmp_path / "mine.toml"
    file.write_text("[forget.gates]\nleek = 1\n")
    with pytest.raises(SettingsError, match="no leek"):
        check_forget(load_settings(file))


@pytest.mark.parametrize("name", AT_LEAST_ONE)
def test_a_start_refuses_a_training_that_could_learn_nothing(tmp_path: Path, name: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(f"[forget.train]\n{name} = 0\ncopies = 0\n")
    with pytest.raises(SettingsError, match=f"^forget.train.{name} is 0; expected 1 or more$"):
        check_forget(load_settings(file))
