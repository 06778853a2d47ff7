"""`lethe compact` on a real ledger with trained weights, to the forward pass of a replica."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from torch import Tensor
from typer.testing import CliRunner

from forgetting.adapter.edit_adapter import EditAdapter
from forgetting.adapter.files import AdapterFacts
from forgetting.adapter.low_rank import from_files, to_files
from forgetting.data.augment import Augmentation
from forgetting.data.image_set import ImageSet, indices, to_tensors
from forgetting.data.samples import Samples
from forgetting.data.sources import digits
from forgetting.erasure.leace import fit_edit
from forgetting.erasure.statistics import feature_statistics
from forgetting.models.backbone import Backbone, save_backbone
from forgetting.task.run import run_task
from forgetting.training.config import TrainConfig
from forgetting.training.pretrain import PretrainConfig, pretrain, small_vit
from registry.fold.state import Release
from registry.publish.compaction import publish_compaction
from registry.publish.jobs import record_trained, request_forget
from registry.publish.releases import activate_release, confirm_release, publish_release, roll_back
from serving.cli.main import app
from serving.config.home import Home, open_ledger, open_subjects, prepare_home, signer
from serving.coordination.unserved import compaction_to_serve
from serving.replica.engines.torch_eager import TorchEngine
from serving.replica.release_reader import ReleaseReader
from serving.replica.slot import Slot

Lethe = Callable[..., Result]
SAID = {"actor": "test", "reason": "", "request_id": "r"}


@pytest.fixture(scope="module")
def images() -> ImageSet:
    return digits(seed=0)


@pytest.fixture(scope="module")
def backbone(images: ImageSet) -> Backbone:
    torch.set_num_threads(1)
    _, arguments, _ = small_vit(images)
    arguments = {**arguments, "embed_dim": 48, "depth": 3, "num_heads": 2}
    mild = Augmentation(rotation=4, scale=0.04, shift=0.03, contrast=0.06, brightness=0.03)
    config = PretrainConfig(steps=250, batch=32, peak_rate=5e-3, augmentation=mild)
    return pretrain(images, model_args=arguments, config=config, seed=0).backbone


def _samples(backbone: Backbone, images: ImageSet, split: str, *labels: int) -> Samples:
    rows = indices(images, split, classes=[str(label) for label in labels or range(10)])
    return Samples(*to_tensors(images, rows, backbone.spec.preprocess))


class Place:
    """A home with a registry. Writes the records that control and the coordinator write."""

    def __init__(self, folder: Path, backbone: Backbone) -> None:
        self.home, self.backbone = Home(folder, folder / "registry"), backbone
        prepare_home(self.home)
        self.ledger = open_ledger(self.home)
        self.operator = signer(self.home, "operator")
        self.publisher = signer(self.home, "publisher")
        probe = torch.zeros(1, *backbone.spec.preprocess.input_size)
        self.slot = Slot(TorchEngine(backbone.model), probe)

    def forget(self, name: str, files: dict[str, bytes], report: bytes) -> Release:
        job = request_forget(
            self.ledger,
            self.operator,
            subjects=[open_subjects(self.home).assign(name)],
            backbone=self.backbone.fingerprint,
            **SAID | {"request_id": name},
        ).id
        record_trained(
            self.ledger,
            self.publisher,
            job=job,
            files=files,
            stack=self.ledger.state.active_release.adapters,
            report=report,
            **SAID,
        )
        return self.activate(
            publish_release(self.ledger, self.publisher, kind="adapter", job=job, **SAID)
        )

    def activate(self, release: Release) -> Release:
        activate_release(self.ledger, self.operator, release=release.number, **SAID)
        members = {"replica-1": "confirmed"}
        return confirm_release(
            self.ledger,
            self.operator,
            release=release.number,
            members=members,  # type: ignore[arg-type]
            ms=1.0,
            **SAID,
        )

    def served(self, release: Release, x: Tensor) -> tuple[Tensor, frozenset[int], frozenset[int]]:
        """What the slot serves: logits before the mask, the guard, and what the weights erase."""
        reader = ReleaseReader(open_ledger(self.home), open_subjects(self.home), self.backbone)
        ready = reader.ready(release.number, self.slot)
        assert self.slot.flip(ready)
        return ready.forward(x), ready.guard, ready.erased


@pytest.fixture
def place(tmp_path: Path, backbone: Backbone, images: ImageSet) -> Place:
    """A registry in which a projection has forgotten 3, and trained pairs with an erasure 8."""
    place = Place(tmp_path, backbone)
    erasure = fit_edit(
        feature_statistics(backbone.model, _samples(backbone, images, "train")),
        feature_statistics(backbone.model, _samples(backbone, images, "train", 3)),
        head=backbone.model.get_submodule("head"),
        earlier=(),
    )
    facts = AdapterFacts(
        backbone=backbone.fingerprint,
        stack=(),
        subjects=("subject-3",),
        method="project",
        config={},
        seed=0,
        steps=0,
        data_digest=images.manifest_digest,
        code_version="0",
        groups_kept=0,
        groups_total=6,
    )
    first = to_files(EditAdapter(erasure, facts))
    place.forget("3", first, b'{"acc_f_after":{"value":0.01,"n":50}}')
    result = run_task(
        backbone,
        [from_files(first, backbone)],
        images=images,
        forget=["8"],
        earlier=["3"],
        subjects={"3": "subject-3", "8": "subject-8"},
        stack_ids=place.ledger.state.active_release.adapters,
        config=TrainConfig(select_steps=10, refit_steps=10, copies=0, replay_per_class=12),
    )
    place.forget("8", dict(result.files), b'{"acc_f_after":{"value":0.0,"n":50}}')
    return place


@pytest.fixture
def lethe(place: Place, backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> Lethe:
    folder = place.home.path / "backbone"
    save_backbone(folder, backbone)
    monkeypatch.setenv("LETHE_HOME", str(place.home.path))
    monkeypatch.setenv("LETHE_BACKBONE__DIRECTORY", str(folder))
    return lambda *arguments: CliRunner().invoke(app, [*map(str, arguments)])


def test_a_compacted_stack_is_served_with_the_same_outputs_and_mask_and_can_be_undone(
    place: Place, lethe: Lethe, backbone: Backbone, images: ImageSet
) -> None:
    test = _samples(backbone, images, "test")
    stacked = place.ledger.state.active_release
    logits, guard, erased = place.served(stacked, test.x)

    made = lethe("compact", "--wait", 0, "--json", "--reason", "the stack is long")
    assert made.exit_code == 0, made.output
    view = json.loads(made.stdout)
    assert view["release"] is None
    assert view["folds"] == list(stacked.adapters)
    assert 0 <= view["difference"] <= 1e-5
    assert "not served in 0 s" in made.stderr

    state = place.ledger.refresh()
    assert state.active == stacked.number
    assert compaction_to_serve(state) == view["adapter"]
    release = place.activate(
        publish_compaction(place.ledger, place.publisher, adapter=view["adapter"], **SAID)
    )
    assert release.adapters == (view["adapter"],)
    again, guard_after, erased_after = place.served(release, test.x)
    assert (guard_after, erased_after) == (guard, erased) == ({3, 8}, {3, 8})
    assert float((again - logits).abs().max()) <= 1e-5 * max(1.0, float(logits.abs().max()))
    assert bool((again.argmax(dim=1) == logits.argmax(dim=1)).all())
    with torch.inference_mode():
        assert float((again - backbone.model(test.x)).abs().max()) > 0.1

    shown = lethe("show", release.number)
    assert "stands for 2 adapters, erases 3, 8" in shown.stdout
    assert "acc_f_after: 1.0% of 50" in shown.stdout
    assert lethe("verify").exit_code == 0

    back = place.activate(roll_back(place.ledger, place.operator, to=stacked.number, **SAID))
    before, *_ = place.served(back, test.x)
    assert torch.equal(before, logits)
    refused = lethe("compact", "--wait", 0)
    assert refused.exit_code == 1
    assert f"lethe rollback {release.number}" in refused.stderr


def test_a_stack_of_one_is_refused_in_a_sentence(place: Place, lethe: Lethe) -> None:
    place.activate(roll_back(place.ledger, place.operator, to=1, **SAID))
    refused = lethe("compact", "--wait", 0)
    assert refused.exit_code == 1
    assert "has 1 adapters: there is nothing to compact" in refused.stderr
    assert refused.stderr.count("\n") == 1
