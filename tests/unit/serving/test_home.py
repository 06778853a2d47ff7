"""The home folder: who can read what."""

from pathlib import Path

import pytest

from serving.home import Home, HomeError, open_subjects, prepare_home, token


def test_only_the_owner_can_read_the_subject_map(tmp_path: Path) -> None:
    home = Home(tmp_path, tmp_path / "registry")
    open_subjects(home).assign("alice")
    files = [path for path in home.registry.rglob("*") if path.is_file()]
    assert len(files) == 2
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def test_an_empty_token_is_refused(tmp_path: Path) -> None:
    home = Home(tmp_path, tmp_path / "registry")
    prepare_home(home)
    assert len(token(home, "operator")) >= 32
    (home.tokens / "operator").write_text("")
    with pytest.raises(HomeError, match="is empty"):
        token(home, "operator")
