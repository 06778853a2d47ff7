"""The images of probes, and how a probe without an answer counts."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from registry.log.ledger import Ledger
from registry.signing.keys import Trust, init_keys
from registry.store.directory import DirectoryStore
from registry.subjects.subject_map import SubjectMap
from serving.config.settings import ProbeSettings
from serving.monitoring.canary_classes import ProbeError, Prober, read_canaries
from serving.monitoring.metrics import Metrics


def folder_of(images: Path, *names: str) -> ProbeSettings:
    for name in names:
        (images / name).mkdir(parents=True)
        (images / name / "1.png").write_bytes(f"image of {name}".encode())
    return ProbeSettings(classes=names, images=images)


def test_every_canary_class_has_its_own_images(tmp_path: Path) -> None:
    found = read_canaries(folder_of(tmp_path, "3", "robot"))
    assert found == {"3": [b"image of 3"], "robot": [b"image of robot"]}
    assert read_canaries(ProbeSettings()) == {}


def test_a_canary_class_without_images_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for name, words in (("absent", "no folder 'absent'"), ("empty", "no images")):
        with pytest.raises(ProbeError, match=words):
            read_canaries(ProbeSettings(classes=(name,), images=tmp_path))


def test_a_canary_class_reads_nothing_outside_of_its_folder(tmp_path: Path) -> None:
    folder_of(tmp_path, "secret")
    images = tmp_path / "images"
    images.mkdir()
    with pytest.raises(ProbeError, match="no folder"):
        read_canaries(ProbeSettings(classes=("../secret",), images=images))


def test_a_probe_that_nobody_answers_is_no_trial(tmp_path: Path) -> None:
    init_keys(tmp_path / "keys")
    store = DirectoryStore(tmp_path / "registry")
    metrics = Metrics("watch")
    prober = Prober(
        {"3": [b"image"]},
        ledger=Ledger(store, Trust.load(tmp_path / "keys" / "trust.json")),
        subjects=SubjectMap(store),
        metrics=metrics,
        http=httpx.Client(base_url="http://127.0.0.1:9", timeout=5, trust_env=False),
    )
    assert prober.probe() == "failed"
    assert prober.counts() == {}
    counted = {
        sample.labels["outcome"]: sample.value
        for family in metrics.families()
        if family.name == "lethe_probes"
        for sample in family.samples
    }
    assert counted == {"quiet": 0, "leak": 0, "exposed": 0, "waiting": 0, "failed": 1}
