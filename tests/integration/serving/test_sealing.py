"""The sealed backbone answers as the release did, without the forgotten classes."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from forgetting.adapter.edit_adapter import EditAdapter
from forgetting.adapter.files import AdapterFacts
from forgetting.adapter.low_rank import Adapter, AnyAdapter, to_files
from forgetting.adapter.stack import adapted_model
from forgetting.data.preprocess import Preprocess
from forgetting.erasure.edit import LowRankEdit
from forgetting.models.backbone import (
    Backbone,
    BackboneSpec,
    build_model,
    features_and_logits,
    freeze,
    load_backbone,
    save_backbone,
)
from registry.publish.jobs import record_trained, request_forget
from registry.publish.releases import activate_release, confirm_release, publish_release
from serving.app import prepare
from serving.cli.main import app
from serving.cli.sealed_release import seal_registry
from serving.cli.sealing import SealError, sealed_backbone
from serving.config.home import (
    Home,
    HomeError,
    open_current_ledger,
    open_ledger,
    open_subjects,
    prepare_home,
    signer,
)
from serving.config.sources import load_settings
from tests.integration.registry.disk import Disk

CLASSES = ("ada", "bo", "cy", "dee")


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    arguments = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 2}
    preprocess = Preprocess(input_size=(1, 8, 8), mean=(0.5,), std=(0.5,))
    spec = BackboneSpec("vit_tiny_patch16_224", arguments, CLASSES, preprocess)
    torch.manual_seed(0)
    return freeze(build_model(spec), spec)


@pytest.fixture(scope="module")
def stack(backbone: Backbone) -> list[AnyAdapter]:
    """A stack: a trained adapter with an erasure on top."""
    generator = torch.Generator().manual_seed(1)

    def numbers(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) / 3

    facts = AdapterFacts(
        backbone=backbone.fingerprint,
        stack=(),
        subjects=("subject",),
        method="by hand",
        config={},
        seed=0,
        steps=1,
        data_digest="sha256:" + "0" * 64,
        code_version="0",
        groups_kept=1,
        groups_total=2,
    )
    a = numbers(1, 12)
    erasure = LowRankEdit(a, torch.linalg.pinv(a).contiguous(), numbers(12), numbers(12))
    return [
        Adapter({"blocks.1.mlp.fc1": (numbers(2, 12), numbers(48, 2))}, facts),
        EditAdapter(erasure, facts),
    ]


def test_a_sealed_backbone_answers_as_the_stack_did_with_the_mask(
    backbone: Backbone, stack: list[AnyAdapter], tmp_path: Path
) -> None:
    sealed = sealed_backbone(backbone, stack, without=["bo"])
    assert sealed.spec.classes == ("ada", "cy", "dee")
    assert sealed.fingerprint != backbone.fingerprint
    save_backbone(tmp_path, sealed)
    again = load_backbone(tmp_path)
    x = torch.randn(6, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        masked = adapted_model(backbone, stack)(x)
        masked[:, 1] = float("-inf")
        expected = masked.softmax(dim=-1)[:, [0, 2, 3]]
        found = again.model(x).softmax(dim=-1)
        bare = backbone.model(x).softmax(dim=-1)[:, [0, 2, 3]]
    assert torch.allclose(found, expected, atol=1e-5)
    assert not torch.allclose(found, bare, atol=1e-2)


def test_a_backbone_says_that_its_embedding_is_the_one_before_a_folded_edit(
    backbone: Backbone, stack: list[AnyAdapter], tmp_path: Path
) -> None:
    x = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(2))
    for adapters, hidden in ((stack[:1], False), (stack, True)):
        sealed = sealed_backbone(backbone, adapters, without=["bo"])
        save_backbone(tmp_path, sealed)
        again = load_backbone(tmp_path)
        assert again.spec.edit_in_head is hidden
        with torch.inference_mode():
            found, _ = features_and_logits(again.model, x)
            served, _ = features_and_logits(adapted_model(backbone, adapters), x)
            unedited, _ = features_and_logits(adapted_model(backbone, stack[:1]), x)
        assert torch.allclose(found, unedited, atol=1e-5)
        assert torch.allclose(found, served, atol=1e-2) is not hidden
    # What was hidden once stays hidden, whatever is sealed on top of it.
    assert sealed_backbone(sealed, [], without=[]).spec.edit_in_head


def test_two_classes_must_be_left(backbone: Backbone, stack: list[AnyAdapter]) -> None:
    with pytest.raises(SealError, match="1 classes would be left"):
        sealed_backbone(backbone, stack, without=CLASSES[1:])


class Stage:
    """A home whose registry has erased `bo` with the stack's trained adapter."""

    def __init__(self, folder: Path, backbone: Backbone, adapter: AnyAdapter) -> None:
        self.folder = folder
        self.home = Home(folder / "home", folder / "home" / "registry")
        prepare_home(self.home)
        save_backbone(folder / "old", backbone)
        for name in backbone.spec.classes:
            (folder / "images" / name).mkdir(parents=True)
        self.config = folder / "lethe.toml"
        self.config.write_text(
            f"home = '{self.home.path}'\nimages = '{folder / 'images'}'\n"
            f"[backbone]\ndirectory = '{folder / 'old'}'\n"
        )
        self.ledger = open_ledger(self.home)
        self.said = {"actor": "ops", "reason": "", "request_id": "forget"}
        self.job = request_forget(
            self.ledger,
            signer(self.home, "operator"),
            subjects=[open_subjects(self.home).assign("bo")],
            backbone=backbone.fingerprint,
            **self.said,
        ).id
        record_trained(
            self.ledger,
            signer(self.home, "publisher"),
            job=self.job,
            files=to_files(adapter),
            stack=(),
            report=b"{}",
            **self.said,
        )

    def serve(self, kind: str) -> None:
        made = publish_release(
            self.ledger, signer(self.home, "publisher"), kind=kind, job=self.job, **self.said
        )
        operator = signer(self.home, "operator")
        activate_release(self.ledger, operator, release=made.number, **self.said)
        confirm_release(self.ledger, operator, release=made.number, members={}, ms=1.0, **self.said)

    def seal(self) -> Result:
        command = ["seal", "--out", str(self.folder / "new"), "--reason", "for good", "--json"]
        return CliRunner().invoke(app, [*command, "--config", str(self.config)])


@pytest.fixture
def stage(tmp_path: Path, backbone: Backbone, stack: list[AnyAdapter]) -> Stage:
    return Stage(tmp_path, backbone, stack[0])


def test_a_release_that_only_masks_is_not_sealed_and_leaves_no_folder(stage: Stage) -> None:
    stage.serve("guard")
    refused = stage.seal()
    assert refused.exit_code == 1
    assert "no adapter to fold" in refused.stderr
    assert not (stage.folder / "new").exists()
    assert stage.ledger.refresh().seal is None


def test_sealing_is_recorded_and_ends_the_registry(stage: Stage) -> None:
    stage.serve("adapter")
    said = stage.seal()
    assert said.exit_code == 0, said.output
    found = json.loads(said.stdout)
    new = load_backbone(stage.folder / "new")
    assert (found["backbone"], found["classes"], found["left_out"]) == (new.fingerprint, 3, 1)
    assert found["edit_in_head"] is new.spec.edit_in_head is False
    seal = stage.ledger.refresh().seal
    assert seal is not None
    assert (seal.release, seal.backbone) == (1, new.fingerprint)
    # It can't be served with the old registry by mistake; the error says what to do.
    stage.config.write_text(stage.config.read_text().replace("/old'", "/new'"))
    with pytest.raises(HomeError, match="ended when it was sealed into this backbone"):
        prepare(load_settings(stage.config))
    # Now the class's name may be deleted too.
    environment = {"LETHE_HOME": str(stage.home.path)}
    gone = CliRunner().invoke(app, ["tombstone", "bo", "--reason", "sealed"], env=environment)
    assert gone.exit_code == 0, gone.output
    again = stage.seal()
    assert again.exit_code == 1
    assert "exists already" in again.stderr


@pytest.mark.parametrize("kept", [0.0, 0.5, 1.0])
def test_a_power_cut_leaves_no_seal_or_the_whole_backbone_beside_it(
    stage: Stage, tmp_path_factory: pytest.TempPathFactory, kept: float
) -> None:
    stage.serve("adapter")
    disk = Disk(stage.folder)
    with disk.recording():
        seal_registry(
            load_settings(stage.config), stage.folder / "kept" / "new", actor="ops", reason=""
        )
    left, rng = tmp_path_factory.mktemp("cuts") / "left", random.Random(3)
    for cut in range(len(disk.calls) + 1):
        disk.after_power_cut(cut, left, kept=kept, rng=rng)
        home = Home(left / "home", left / "home" / "registry")
        seal = open_current_ledger(home, read_only=False).state.seal
        if seal is not None:
            assert load_backbone(left / "kept" / "new").fingerprint == seal.backbone
        shutil.rmtree(left)
    assert seal is not None
