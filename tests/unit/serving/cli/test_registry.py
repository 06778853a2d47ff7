"""The registry's commands on a copy of the golden registry: their output and exit codes."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from registry.publish.declarations import write_note
from registry.publish.jobs import request_forget
from registry.signing.keys import Signer
from serving.cli.main import app
from serving.config.home import Home, open_ledger, open_subjects, prepare_home

HEAD = "sha256:cdbea07abc166d36de79eeada59cbc382f4cd34f84ef2503da469bcaaf527dc6"
ORPHAN = "blobs/sha256/00/" + "0" * 64

Lethe = Callable[..., Result]


@pytest.fixture
def home(tmp_path: Path, project_root: Path) -> Path:
    golden = project_root / "tests/unit/registry/golden/v1"
    home = tmp_path / "home"
    shutil.copytree(golden / "registry", home / "registry")
    (home / "keys").mkdir()
    shutil.copy(golden / "trust.json", home / "keys")
    return home


@pytest.fixture
def lethe(home: Path) -> Lethe:
    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, list(map(str, arguments)), env={"LETHE_HOME": str(home)})

    return run


def read(result: Result) -> Any:
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def refused(result: Result) -> str:
    assert result.exit_code == 1, result.output
    assert result.stderr.startswith("lethe: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


def test_log_shows_each_record_on_a_line(lethe: Lethe) -> None:
    lines = lethe("log").stdout.splitlines()
    assert len(lines) == 21
    assert "requested" in lines[1]
    assert "job-1: erase " in lines[1]
    assert not any("seven" in line or "Zoë" in line for line in lines)
    entries = read(lethe("log", "--from", 20, "--json"))
    assert [entry["type"] for entry in entries] == ["activated", "confirmed"]
    assert entries[-1]["digest"] == HEAD


def test_show_tells_what_is_in_a_release_and_who_made_it(lethe: Lethe) -> None:
    view = read(lethe("show", 4, "--json"))
    assert (view["kind"], view["active"], view["job"]) == ("adapter", False, "job-2")
    assert [s["class"] for a in view["adapters"] for s in a["subjects"]] == ["seven", "Zoë"]
    assert {s["class"] for s in view["guard"]} == {"seven", "Zoë"}
    assert view["adapters"][0]["figures"] == {"accepted": True}
    assert view["adapters"][0]["files"]["forget.json"]["size"] == 12
    assert view["defined"]["seq"] < view["activated"]["seq"] < view["confirmed"]["seq"]
    text = lethe("show", 4).stdout
    assert "release 4: adapter" in text
    assert "masked: " in text
    assert "12 bytes" in text
    assert "accepted: True" in text


def test_show_knows_the_bare_backbone_and_no_release_that_is_not(lethe: Lethe) -> None:
    assert "release 0: bare" in lethe("show", 0).stdout
    assert "no release 9" in refused(lethe("show", 9))


def test_diff_tells_what_came_and_went(lethe: Lethe) -> None:
    view = read(lethe("diff", 1, 4, "--json"))
    assert len(view["adapters_added"]) == 2
    assert [s["class"] for s in view["guard_added"]] == ["Zoë"]
    assert view["adapters_removed"] == view["guard_removed"] == []
    assert lethe("diff", 4, 1).stdout.count("- adapter") == 2
    assert "same content" in lethe("diff", 2, 2).stdout


def test_audit_finds_a_subject_by_class_or_id_and_names_no_class(
    lethe: Lethe, tmp_path: Path
) -> None:
    by_class = lethe("audit", "seven").stdout
    subject = read(lethe("audit", "seven", "--json"))["subject"]
    assert lethe("audit", subject).stdout == by_class
    assert "forgotten by the weights on every replica, by release 2" in by_class
    page = tmp_path / "audit.html"
    assert lethe("audit", subject, "--html", page).stdout == ""
    assert subject in page.read_text()
    assert "seven" not in by_class + page.read_text()
    assert "neither a class" in refused(lethe("audit", "eleven"))
    assert "can't be written" in refused(lethe("audit", "seven", "--html", tmp_path / "no/x"))


def test_without_the_subject_map_ids_stand_for_classes(lethe: Lethe, home: Path) -> None:
    shutil.rmtree(home / "registry/subjects")
    view = read(lethe("show", 4, "--json"))
    assert {s["class"] for s in view["guard"]} == {None}
    assert "seven" not in lethe("show", 4).stdout


def test_verify_of_a_sound_registry_tells_its_head(lethe: Lethe) -> None:
    assert f"sound: 21 good records, 6 blobs of 77 bytes, head {HEAD}" in lethe("verify").stdout
    found = read(lethe("verify", "--json"))
    assert (found["sound"], found["seq"], found["problems"]) == (True, 21, [])


def test_verify_of_a_damaged_copy_names_file_and_check(
    lethe: Lethe, home: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(home / "registry", copy)
    blob = next(path for path in copy.glob("blobs/*/*/*"))
    blob.write_bytes(b"x" * blob.stat().st_size)
    trust = tmp_path / "trust.json"
    shutil.move(home / "keys/trust.json", trust)
    result = lethe("verify", "--registry", copy, "--trust", trust, "--json")
    assert result.exit_code == 1
    (problem,) = json.loads(result.stdout)["problems"]
    assert (problem["where"], problem["check"]) == (str(blob.relative_to(copy)), "sha256")
    assert "trust.json" in refused(lethe("verify"))


def test_verify_notices_a_copy_older_than_what_was_seen(lethe: Lethe) -> None:
    assert lethe("verify", "--at-least", 21).exit_code == 0
    assert "older copy" in refused(lethe("verify", "--at-least", 22))


def test_verify_remembers_the_newest_record_and_notices_when_it_is_gone(tmp_path: Path) -> None:
    home = tmp_path / "home"

    def lethe(*arguments: object) -> Result:
        environment = {"LETHE_HOME": str(home)}
        return CliRunner().invoke(app, list(map(str, arguments)), env=environment)

    lethe("keys", "init")
    ledger = open_ledger(Home(home, home / "registry"))
    operator = Signer.load(home / "keys/operator.pem")
    for number in range(3):
        write_note(ledger, operator, text=f"{number}", actor="a", reason="", request_id="r")
    assert lethe("verify").exit_code == 0
    (home / "registry/log/00000000000000000003.json").unlink()
    assert "record 3 was seen before" in refused(lethe("verify"))
    assert lethe("verify", "--registry", home / "registry").exit_code == 0
    mark = home / "highwater.json"
    mark.write_text(mark.read_text().replace('"seq":3', '"seq":2'))
    assert "check: signature" in refused(lethe("verify"))


def test_a_hold_is_placed_and_lifted_by_class_and_stands_in_the_audit(tmp_path: Path) -> None:
    environment = {"LETHE_HOME": str(tmp_path)}

    def lethe(*arguments: str) -> Result:
        return CliRunner().invoke(app, arguments, env=environment)

    lethe("keys", "init")
    home = Home(tmp_path, tmp_path / "registry")
    subject = open_subjects(home).assign("alice")
    request_forget(
        open_ledger(home),
        Signer.load(tmp_path / "keys/operator.pem"),
        subjects=[subject],
        backbone=f"sha256:{'b' * 64}",
        actor="ops",
        reason="",
        request_id="r",
    )
    order = ("--reason", "case 7", "--actor", "counsel")
    placed = read(lethe("hold", "alice", *order, "--json"))
    assert (placed["type"], placed["body"]["act"], placed["actor"]) == (
        "legal_hold",
        "placed",
        "counsel",
    )
    assert "already under a legal hold" in refused(lethe("hold", subject, *order))
    assert "legal hold lifted" in lethe("hold", subject, "--lift", *order).stdout
    assert lethe("audit", "alice").stdout.count("legal_hold") == 2
    assert "neither a class" in refused(lethe("hold", "bob", *order))


def test_a_folder_that_is_no_registry_is_refused(lethe: Lethe, home: Path) -> None:
    assert "no registry at" in refused(lethe("verify", "--registry", home / "missing"))
    assert "is no registry" in refused(lethe("verify", "--registry", home / "keys"))


def test_fsck_tells_litter_from_damage_and_gc_takes_it(lethe: Lethe, home: Path) -> None:
    registry = home / "registry"
    for name in (ORPHAN, "log/.tmp-1-abc", "log/stray.txt"):
        (registry / name).parent.mkdir(exist_ok=True)
        (registry / name).write_bytes(b"")
    # Without the right bytes for its name, the blob would be damage and not an orphan.
    assert "check: sha256" in refused(lethe("fsck"))
    (registry / ORPHAN).unlink()
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    orphan = registry / "blobs/sha256/e3" / empty
    orphan.parent.mkdir()
    orphan.write_bytes(b"")
    result = lethe("fsck")
    assert result.exit_code == 0
    for line in (f"orphan    blobs/sha256/e3/{empty}", "stray     log/stray.txt"):
        assert line in result.stdout
    assert len(read(lethe("fsck", "--json"))["leftovers"]) == 1

    assert read(lethe("gc", "--json"))["blobs"] == []
    for path in (orphan, registry / "log/.tmp-1-abc"):
        os.utime(path, (0, 0))
    dry = "1 blobs, 0 images without a request, 1 temporary files would go"
    assert dry in lethe("gc", "--dry-run").stdout
    assert orphan.exists()
    assert "1 blobs, 0 images without a request, 1 temporary files deleted" in lethe("gc").stdout
    assert not orphan.exists()
    assert lethe("verify").exit_code == 0


def test_an_export_is_imported_whole(lethe: Lethe, home: Path, tmp_path: Path) -> None:
    archive, other = tmp_path / "all.tar", tmp_path / "other"
    assert read(lethe("export", archive, "--json"))["head"] == HEAD
    assert f"21 records, head {HEAD}" in lethe("import", archive, "--registry", other).stdout
    assert lethe("verify", "--registry", other).exit_code == 0
    assert not (other / "subjects").exists()


def test_a_cut_archive_is_refused_and_a_failed_export_leaves_nothing(
    lethe: Lethe, home: Path, tmp_path: Path
) -> None:
    archive = tmp_path / "all.tar"
    lethe("export", archive)
    archive.write_bytes(archive.read_bytes()[:9000])
    assert "lethe: " in refused(lethe("import", archive, "--registry", tmp_path / "other"))
    assert "can't be read" in refused(lethe("import", tmp_path / "no.tar", "--registry", tmp_path))
    assert "can't be written" in refused(lethe("export", tmp_path / "no/such.tar"))
    next(home.glob("registry/blobs/*/*/*")).unlink()
    refused(lethe("export", tmp_path / "half.tar"))
    assert not list(tmp_path.glob("*half.tar"))


def test_keys_are_made_once_and_listed(tmp_path: Path) -> None:
    def keys(verb: str) -> Any:
        environment = {"LETHE_HOME": str(tmp_path)}
        return read(CliRunner().invoke(app, ["keys", verb, "--json"], env=environment))

    first = keys("init")
    assert keys("init") == keys("list") == first
    assert sorted(row["roles"][0] for row in first) == ["eraser", "operator", "publisher"]
    assert all(Path(row["private_key"]).is_relative_to(tmp_path) for row in first)


def test_keys_rotate_retires_the_old_key_and_list_tells(tmp_path: Path) -> None:
    def lethe(*arguments: str) -> Result:
        return CliRunner().invoke(app, ["keys", *arguments], env={"LETHE_HOME": str(tmp_path)})

    lethe("init")
    done = read(lethe("rotate", "operator", "--json"))
    rows = {row["key"]: row for row in read(lethe("list", "--json"))}
    assert rows[done["old"]]["not_after"] == done["not_after"]
    assert rows[done["old"]]["private_key"] is None
    assert rows[done["new"]]["private_key"] == str(tmp_path / "keys/operator.pem")
    assert "restart" in lethe("rotate", "publisher", "--overlap", "2").stdout
    assert "no role 'admin'" in refused(lethe("rotate", "admin"))


def test_keys_whose_private_half_is_elsewhere_are_listed_as_such(lethe: Lethe) -> None:
    assert lethe("keys", "list").stdout.count("not here") == 3


def test_no_registry_command_loads_torch() -> None:
    code = "import sys, serving.cli.main; sys.exit(any(m in sys.modules for m in ('torch', 'ray')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_older_copy_put_back_is_sound_and_found_by_the_number_that_was_seen(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A backup is made, a class is erased after it, and the backup is put back."""
    monkeypatch.setenv("LETHE_HOME", str(tmp_path / "home"))
    home = Home(tmp_path / "home", tmp_path / "home" / "registry")
    prepare_home(home)
    ledger, operator = open_ledger(home), Signer.load(home.keys / "operator.pem")

    def request(name: str) -> int:
        request_forget(
            ledger,
            operator,
            subjects=[open_subjects(home).assign(name)],
            backbone="sha256:" + "b" * 64,
            actor="ops",
            reason="",
            request_id=name,
        )
        return ledger.state.seq

    def lethe(*arguments: object) -> Result:
        return CliRunner().invoke(app, list(map(str, arguments)))

    backup, copy = tmp_path / "backup.tar", tmp_path / "copy"
    request("seven")
    assert lethe("export", backup).exit_code == 0
    seen = request("eight")
    assert lethe("import", backup, "--registry", copy).exit_code == 0

    elsewhere = ("--registry", copy, "--trust", home.keys / "trust.json")
    assert read(lethe("verify", *elsewhere, "--json"))["sound"]
    assert "older copy" in refused(lethe("verify", *elsewhere, "--at-least", seen))
    found = lethe("verify", *elsewhere, "--at-least", seen, "--json")
    assert found.exit_code == 1
    (problem,) = json.loads(found.stdout)["problems"]
    assert problem["check"] == "replay"
    assert problem["where"] == f"log/{seen:020}.json"
    assert lethe("verify", "--at-least", seen).exit_code == 0

    shutil.rmtree(home.registry)
    shutil.copytree(copy, home.registry)
    assert "older copy" in refused(lethe("verify"))
