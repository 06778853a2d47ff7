"""A home for the files that Ray writes there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from ray._raylet import AuthenticationTokenLoader, Config


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """HOME, empty. Ray's library remembers tokens and settings of the environment; afterwards it
    reads them anew, for later tests in this process."""
    monkeypatch.setenv("HOME", str(tmp_path))
    AuthenticationTokenLoader.instance().reset_cache()
    yield tmp_path
    monkeypatch.undo()
    AuthenticationTokenLoader.instance().reset_cache()
    Config.initialize("")
