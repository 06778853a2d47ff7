"""Settings: their sources, and the messages about mistakes."""

from __future__ import annotations

from pathlib import Path

import pytest

from serving.config.sources import SettingsError, load_settings


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("LETHE_PORT", "LETHE_HOME", "LETHE_LEASE__SECONDS"):
        monkeypatch.delenv(name, raising=False)


def test_flags_win_over_the_environment_and_that_over_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lethe.toml").write_text("port = 1111\nreplicas = 5\n[lease]\nseconds = 4.0\n")
    assert load_settings().port == 1111
    monkeypatch.setenv("LETHE_PORT", "2222")
    assert load_settings().port == 2222
    chosen = load_settings(port=3333)
    assert (chosen.port, chosen.replicas, chosen.lease.seconds) == (3333, 5, 4.0)


@pytest.mark.parametrize(
    ("toml", "words"),
    [
        ("port = 70000", "port: .*65535"),
        ("prot = 8000", "prot: .*not permitted"),
        ("[lease]\nseconds = 1.0", "lease: .*three heartbeats"),
        ("[backbone]\nmodel = 'vit_tiny_patch16_224'", "backbone: .*labels"),
        ("port = ", "not valid TOML"),
    ],
)
def test_a_mistake_is_named_with_its_place(tmp_path: Path, toml: str, words: str) -> None:
    file = tmp_path / "mine.toml"
    file.write_text(toml)
    with pytest.raises(SettingsError, match=words):
        load_settings(file)


def test_a_variable_that_cannot_be_read_is_not_blamed_on_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("LETHE_BACKBONE", "no json")
    with pytest.raises(SettingsError, match="^the environment: .*backbone"):
        load_settings()


def test_a_settings_file_that_is_named_must_exist(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="does not exist"):
        load_settings(tmp_path / "absent.toml")


def test_operators_have_a_port_of_their_own(tmp_path: Path) -> None:
    assert load_settings(port=9000).operator_url == "http://127.0.0.1:9001"
    file = tmp_path / "mine.toml"
    file.write_text("port = 9000\n[operator]\nport = 7000\nhost = '0.0.0.0'\n")
    assert load_settings(file).operator_url == "http://0.0.0.0:7000"
    file.write_text("port = 9000\noperator.port = 9000\n")
    with pytest.raises(SettingsError, match=r"operator\.port"):
        load_settings(file)
    with pytest.raises(SettingsError, match=r"operator\.port"):
        load_settings(port=65535)


def test_relative_paths_are_the_settings_files_own(tmp_path: Path) -> None:
    folder = tmp_path / "deep"
    folder.mkdir()
    file = folder / "lethe.toml"
    file.write_text("home = 'here'\nimages = 'faces'\n[backbone]\ndirectory = '../vit'\n")
    chosen = load_settings(file)
    assert chosen.home_path == folder / "here"
    assert chosen.images == str(folder / "faces")
    assert chosen.backbone.directory is not None
    assert chosen.backbone.directory.resolve() == tmp_path / "vit"


def test_a_registry_is_a_folder_or_a_bucket(tmp_path: Path) -> None:
    assert load_settings().registry_location == Path("~/.lethe").expanduser() / "registry"
    file = tmp_path / "lethe.toml"
    file.write_text("registry = 'here'\n")
    assert load_settings(file).registry_location == tmp_path / "here"
    file.write_text("registry = 's3://bucket/folder'\n")
    assert load_settings(file).registry_location == "s3://bucket/folder"
    assert load_settings(registry="gs://b/f").registry_location == "gs://b/f"
    assert load_settings(registry=tmp_path / "there").registry_location == tmp_path / "there"


def test_the_most_replicas_are_not_fewer_than_the_least(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_settings(replicas=3).most_replicas == 3
    assert load_settings(replicas=3, autoscale={"most": 5}).most_replicas == 5
    with pytest.raises(SettingsError, match=r"autoscale\.most is 2, less than replicas \(3\)"):
        load_settings(replicas=3, autoscale={"most": 2})
