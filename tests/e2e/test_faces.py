"""A server on an image folder: 40 faces, a backbone from `lethe pretrain`, one face forgotten."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from forgetting.data.sources import open_image_set
from serving.loadgen.sender import Answer
from serving.loadgen.traffic import audit, held_out
from tests.e2e.conftest import LETHE, Server


@pytest.mark.slow
def test_a_face_is_forgotten_by_a_backbone_trained_on_a_folder(
    make_server: Callable[..., Server], data_root: Path, tmp_path: Path
) -> None:
    faces = data_root / "faces_orl40"
    trained = subprocess.run(
        [*LETHE, "pretrain", "--data", str(faces), "--out", str(tmp_path / "vit"), "--json"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert trained.returncode == 0, trained.stderr
    accuracy = json.loads(trained.stdout)["test_accuracy"]
    assert accuracy >= 0.85

    toml = f"images = '{faces}'\n[backbone]\ndirectory = '{tmp_path / 'vit'}'\n"
    server = make_server(toml, quick=False)
    server.start()
    images = open_image_set(faces)
    pictures = held_out(images)
    with server.client() as client:
        before = audit(server.url, server.auditor_token, pictures)
        assert sum(a.weights == a.label for a in before) / len(before) >= accuracy - 1e-3
        done = client.wait(client.forget(["s07"])["job"])
        assert done["state"] == "done", done
        after = audit(server.url, server.auditor_token, pictures)
    assert [a for a in after if a.label == "s07" and a.weights == "s07"] == []
    assert [a for a in after if a.named == "s07"] == []

    def kept(answers: list[Answer]) -> float:
        own = [a for a in answers if a.label != "s07"]
        return sum(a.weights == a.label for a in own) / len(own)

    assert kept(after) >= kept(before) - 0.02
    assert server.stop() == 0
