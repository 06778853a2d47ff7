"""`lethe tombstone` on a real registry: what is deleted, what stays, and what it prints."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import Result
from typer.testing import CliRunner

from registry.publish.declarations import restore_subjects
from registry.publish.jobs import request_forget
from registry.publish.releases import activate_release, publish_release
from registry.store.directory import open_store
from serving.cli.main import app
from serving.config.home import Home, open_ledger, open_subjects, prepare_home, signer

WHY = ("--reason", "the request was withdrawn, and all of it is to go")


@dataclass(frozen=True)
class Stage:
    home: Home
    subject: str

    def lethe(self, *arguments: str) -> Result:
        return CliRunner().invoke(app, arguments, env={"LETHE_HOME": str(self.home.path)})

    def restore(self) -> None:
        ledger, operator = open_ledger(self.home), signer(self.home, "operator")
        said = {"actor": "ops", "reason": "withdrawn", "request_id": "restore"}
        restore_subjects(ledger, operator, subjects=[self.subject], **said)
        made = publish_release(
            ledger, signer(self.home, "publisher"), kind="guard", job="job-1", **said
        )
        activate_release(ledger, operator, release=made.number, **said)


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """A registry in which `alice` is masked and has two files."""
    home = Home(tmp_path, tmp_path / "registry")
    prepare_home(home)
    ledger, operator = open_ledger(home), signer(home, "operator")
    said = {"actor": "ops", "reason": "", "request_id": "forget"}
    subject = open_subjects(home).assign("alice")
    backbone = f"sha256:{'b' * 64}"
    request_forget(ledger, operator, subjects=[subject], backbone=backbone, **said)
    made = publish_release(ledger, signer(home, "publisher"), kind="guard", job="job-1", **said)
    activate_release(ledger, operator, release=made.number, **said)
    for name in ("images/one", "prototypes/mean"):
        open_store(home.registry).create(f"subjects/{subject}/{name}", b"of alice")
    return Stage(home, subject)


def kept_of_alice(stage: Stage) -> list[Path]:
    assert isinstance(stage.home.registry, Path)
    files = (path for path in stage.home.registry.rglob("*") if path.is_file())
    return [path for path in files if b"alice" in path.read_bytes()]


def test_a_tombstone_leaves_nothing_of_a_subject_and_the_chain_still_verifies(
    stage: Stage,
) -> None:
    stage.restore()
    assert len(kept_of_alice(stage)) == 3
    assert json.loads(stage.lethe("fsck", "--json").stdout)["strays"] == []
    found = stage.lethe("tombstone", "alice", *WHY, "--json")
    assert found.exit_code == 0, found.output
    assert json.loads(found.stdout)["objects"] == ["images", "prototypes", "subject_map"]
    assert len(json.loads(found.stdout)["files"]) == 2
    assert kept_of_alice(stage) == []
    assert stage.lethe("verify").exit_code == 0
    # The audit still has its whole history, under the id alone.
    told = stage.lethe("audit", stage.subject).stdout
    assert "tombstone" in told
    assert WHY[1] in told
    assert "alice" not in told + stage.lethe("log").stdout
    assert "neither a class" in stage.lethe("tombstone", "alice", *WHY).stderr
    assert "gone already" in stage.lethe("tombstone", stage.subject, *WHY).stderr
    # The class can be forgotten again, with a new id.
    assert open_subjects(stage.home).assign("alice") != stage.subject


def test_the_class_of_a_subject_under_erasure_stays_known_to_replicas(stage: Stage) -> None:
    said = stage.lethe("tombstone", "alice", *WHY)
    assert said.exit_code == 0, said.output
    assert "2 files were deleted, its class stays known" in said.stdout
    assert open_subjects(stage.home).class_of(stage.subject) == "alice"
    refused = stage.lethe("tombstone", "alice", *WHY)
    assert refused.exit_code == 1
    assert "replicas still need the class" in refused.stderr


def test_a_legal_hold_keeps_everything(stage: Stage) -> None:
    stage.restore()
    order = ("--reason", "case 7", "--actor", "counsel")
    assert stage.lethe("hold", "alice", *order).exit_code == 0
    refused = stage.lethe("tombstone", "alice", *WHY)
    assert refused.exit_code == 1
    assert "under a legal hold" in refused.stderr
    assert len(kept_of_alice(stage)) == 3


def test_a_tombstone_that_was_cut_off_is_completed_by_the_same_command(stage: Stage) -> None:
    """The command was killed after the deletion and before the record."""
    stage.restore()
    assert isinstance(stage.home.registry, Path)
    for path in kept_of_alice(stage):
        path.unlink()
    open_store(stage.home.registry).list("subjects/")
    for path in (stage.home.registry / "subjects" / "by-class").iterdir():
        path.unlink()
    said = stage.lethe("tombstone", stage.subject, *WHY)
    assert said.exit_code == 0, said.output
    assert "the id leads to no class any more" in said.stdout
    assert "tombstone" in stage.lethe("log").stdout


def test_without_the_erasers_key_nothing_is_deleted(stage: Stage) -> None:
    stage.restore()
    (stage.home.keys / "eraser.pem").unlink()
    refused = stage.lethe("tombstone", "alice", *WHY)
    assert refused.exit_code == 1
    assert "eraser.pem" in refused.stderr
    assert len(kept_of_alice(stage)) == 3
