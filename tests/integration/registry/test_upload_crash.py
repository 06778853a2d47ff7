"""A forget command is killed after it stored images and before it added its record."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from registry.log.ledger import Ledger, utc_now
from registry.signing.keys import Trust, init_keys
from registry.store.directory import DirectoryStore
from registry.subjects.personal import images_of
from registry.subjects.subject_map import SubjectMap
from registry.upkeep.collection import collect
from registry.upkeep.verification import verify
from tests.unit.registry.registry_acts import BACKBONE

# The steps of serving.control.control, in its order. It waits to be killed where it is told to.
COMMAND = """
import signal, sys
from pathlib import Path
from registry.publish.jobs import request_forget
from registry.signing.keys import Signer, Trust
from registry.log.ledger import Ledger
from registry.subjects.personal import keep_image
from registry.store.directory import DirectoryStore
from registry.subjects.subject_map import SubjectMap

root, stop_at = Path(sys.argv[1]), sys.argv[2]

def step(name):
    if name == stop_at:
        print(name, flush=True)
        signal.pause()

store = DirectoryStore(root / "registry", file_mode=0o600)
ledger = Ledger(store, Trust.load(root / "keys" / "trust.json"))
ledger.refresh()
subject = SubjectMap(store).assign("seven")
step("assigned")
for image in (b"one", b"two"):
    keep_image(store, subject, image)
    step(f"kept {image.decode()}")
request_forget(
    ledger, Signer.load(root / "keys" / "operator.pem"), subjects=[subject],
    backbone=sys.argv[3], actor="ops", reason="", request_id="request-1",
)
step("requested")
"""


def killed_at(root: Path, step: str) -> None:
    command = [sys.executable, "-c", COMMAND, str(root), step, BACKBONE]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == step
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(timeout=30) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("step", "left"), [("assigned", 0), ("kept one", 1), ("kept two", 2), ("requested", 0)]
)
def test_what_a_killed_command_left_is_collected_and_what_it_recorded_stays(
    tmp_path: Path, step: str, left: int
) -> None:
    init_keys(tmp_path / "keys")
    killed_at(tmp_path, step)
    store, trust = DirectoryStore(tmp_path / "registry"), Trust.load(tmp_path / "keys/trust.json")
    ledger = Ledger(store, trust)
    subject = SubjectMap(store).find("seven")
    assert subject is not None
    soon, late = utc_now(), utc_now() + timedelta(days=2)
    assert collect(store, ledger, now=soon).uploads == ()
    found = collect(store, ledger, now=late)
    assert len(found.uploads) == left
    images = images_of(store, subject)
    assert sorted(images) == ([b"one", b"two"] if step == "requested" else [])
    assert collect(store, ledger, now=late).uploads == ()
    assert verify(store, trust).problems == ()
