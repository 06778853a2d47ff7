"""What a replica reads from signed records: weights, the guard, and the reports' figures."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from forgetting.adapter.edit_adapter import EditAdapter
from forgetting.adapter.files import FACTS_FILE, AdapterFacts
from forgetting.adapter.low_rank import Adapter, AnyAdapter, from_files, to_files
from forgetting.adapter.stack import adapted_model
from forgetting.data.preprocess import Preprocess
from forgetting.erasure.edit import LowRankEdit
from forgetting.errors import AdapterError
from forgetting.models.backbone import Backbone, BackboneSpec, build_model, freeze
from forgetting.models.golden import golden_figures, golden_image
from registry.errors import IntegrityError, RegistryError
from registry.fold.state import Release
from registry.log.adapters import adapter_files
from registry.log.ledger import blob_key
from registry.publish.jobs import record_trained, request_forget
from registry.publish.releases import activate_release, publish_release, roll_back
from serving.config.home import Home, open_ledger, open_subjects, prepare_home, signer
from serving.replica.engines.torch_eager import TorchEngine
from serving.replica.release_reader import ReleaseReader, failed
from serving.replica.slot import BuildError, Measured, ReadyRelease, SelfCheckError, Slot


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    arguments = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 2}
    preprocess = Preprocess(input_size=(1, 8, 8), mean=(0.5,), std=(0.5,))
    spec = BackboneSpec("vit_tiny_patch16_224", arguments, ("ada", "bo", "cy"), preprocess)
    torch.manual_seed(0)
    return freeze(build_model(spec), spec)


class Writer:
    """Writes forget tasks into a registry as control and coordinator do."""

    def __init__(self, folder: Path, backbone: Backbone) -> None:
        self.home = Home(folder, folder / "registry")
        prepare_home(self.home)
        self.ledger = open_ledger(self.home)
        self._backbone = backbone
        self.operator = signer(self.home, "operator")
        self.publisher = signer(self.home, "publisher")

    def forget(self, name: str, report: object, *, kind: str = "lora") -> Release:
        """Publish and activate an adapter for `name`, with this report."""
        said = {"actor": "test", "reason": "", "request_id": name}
        fingerprint = self._backbone.fingerprint
        subject = open_subjects(self.home).assign(name)
        job = request_forget(
            self.ledger, self.operator, subjects=[subject], backbone=fingerprint, **said
        )
        stack = self.ledger.state.active_release.adapters
        record_trained(
            self.ledger,
            self.publisher,
            job=job.id,
            files=to_files(self.adapter(subject, stack, kind=kind)),
            stack=stack,
            report=json.dumps(report).encode(),
            **said,
        )
        return self._activate("adapter", job.id, said)

    def mask(self, name: str) -> Release:
        """Publish and activate a release that masks one more class."""
        said = {"actor": "test", "reason": "", "request_id": name}
        subject = open_subjects(self.home).assign(name)
        fingerprint = self._backbone.fingerprint
        job = request_forget(
            self.ledger, self.operator, subjects=[subject], backbone=fingerprint, **said
        )
        return self._activate("guard", job.id, said)

    def _activate(self, kind: str, job: str, said: dict[str, str]) -> Release:
        made = publish_release(self.ledger, self.publisher, kind=kind, job=job, **said)
        return activate_release(self.ledger, self.operator, release=made.number, **said)

    def roll_back(self, to: int) -> Release:
        said = {"actor": "test", "reason": "", "request_id": f"back to {to}"}
        made = roll_back(self.ledger, self.operator, to=to, **said)
        return activate_release(self.ledger, self.operator, release=made.number, **said)

    def adapter(self, subject: str, stack: tuple[str, ...], *, kind: str = "lora") -> AnyAdapter:
        generator = torch.Generator().manual_seed(len(stack))
        pair = (
            torch.randn(2, 12, generator=generator),
            torch.randn(48, 2, generator=generator) / 100,
        )
        facts = AdapterFacts(
            backbone=self._backbone.fingerprint,
            stack=stack,
            subjects=(subject,),
            method="by hand",
            config={},
            seed=0,
            steps=1,
            data_digest="sha256:" + "0" * 64,
            code_version="0",
            groups_kept=1,
            groups_total=2,
        )
        if kind == "lora":
            return Adapter({"blocks.1.mlp.fc1": pair}, facts)
        a = torch.randn(1, 12, generator=generator)
        mean, shift = torch.randn(2, 12, generator=generator)
        return EditAdapter(LowRankEdit(a, torch.linalg.pinv(a).contiguous(), mean, shift), facts)


@pytest.fixture
def writer(tmp_path: Path, backbone: Backbone) -> Writer:
    return Writer(tmp_path, backbone)


def read(writer: Writer, backbone: Backbone, release: Release | int) -> ReadyRelease:
    reader = ReleaseReader(open_ledger(writer.home), open_subjects(writer.home), backbone)
    slot = Slot(TorchEngine(backbone.model), golden_image((1, 8, 8)))
    return reader.ready(release if isinstance(release, int) else release.number, slot)


def report(acc_f: float, before: float, after: float) -> dict[str, object]:
    shares = {"acc_f_after": acc_f, "acc_r_before": before, "acc_r_after": after}
    return {name: {"value": value, "n": 100} for name, value in shares.items()}


def golden_of(writer: Writer, backbone: Backbone, release: Release) -> list[float]:
    """The golden figures that `release` should have, computed without the serving code."""
    files = [adapter_files(writer.ledger, adapter) for adapter in release.adapters]
    model = adapted_model(backbone, [from_files(found, backbone) for found in files])
    with torch.no_grad():
        return list(golden_figures(model(golden_image((1, 8, 8)))))


def test_a_release_that_computes_what_its_report_says_is_built(
    tmp_path: Path, backbone: Backbone
) -> None:
    trial = Writer(tmp_path / "trial", backbone)
    first = golden_of(trial, backbone, trial.forget("ada", {}))
    second = golden_of(trial, backbone, trial.forget("bo", {}))
    assert max(abs(a - b) for a, b in zip(first, second, strict=True)) > 0.01
    writer = Writer(tmp_path / "real", backbone)
    assert read(writer, backbone, writer.forget("ada", {"golden": first})).number == 1
    assert read(writer, backbone, writer.forget("bo", {"golden": second})).number == 2
    assert read(writer, backbone, writer.mask("cy")).number == 3


@pytest.mark.parametrize("wrong", ["another stack's", "cut off", "not a number"])
def test_a_release_that_computes_something_else_is_not_built(
    tmp_path: Path, backbone: Backbone, wrong: str
) -> None:
    trial = Writer(tmp_path / "trial", backbone)
    right = golden_of(trial, backbone, trial.forget("ada", {}))
    figures = {
        "another stack's": golden_of(trial, backbone, trial.forget("bo", {})),
        "cut off": right[:-1],
        "not a number": [math.nan, *right[1:]],
    }
    writer = Writer(tmp_path / "real", backbone)
    release = writer.forget("ada", {"golden": figures[wrong]})
    with pytest.raises(SelfCheckError, match="on the golden image, release 1"):
        read(writer, backbone, release)


@pytest.mark.parametrize("golden", [None, "x", ["x"], {}])
def test_a_report_that_says_nothing_of_the_golden_image_checks_nothing(
    writer: Writer, backbone: Backbone, golden: object
) -> None:
    assert read(writer, backbone, writer.forget("ada", {"golden": golden})).number == 1


def test_measured_is_the_worst_leak_and_the_last_loss_of_the_stack(
    writer: Writer, backbone: Backbone
) -> None:
    first = writer.forget("ada", report(0.04, 0.9, 0.9))
    second = writer.forget("bo", report(0.01, 0.9, 0.75))
    assert read(writer, backbone, 0).measured == Measured(leak=0.0, drift=0.0)
    assert read(writer, backbone, first).measured == Measured(leak=0.04, drift=0.0)
    measured = read(writer, backbone, second).measured
    assert measured.leak == pytest.approx(0.04)
    assert measured.drift == pytest.approx(0.15)


@pytest.mark.parametrize("odd", [[], {"acc_f_after": "none"}, {"acc_f_after": {"value": None}}])
def test_a_report_without_figures_promises_nothing(
    odd: object, writer: Writer, backbone: Backbone
) -> None:
    release = writer.forget("ada", odd)
    assert read(writer, backbone, release).measured == Measured(leak=0.0, drift=0.0)


def test_a_damaged_report_does_not_keep_a_replica_from_serving(
    writer: Writer, backbone: Backbone, caplog: pytest.LogCaptureFixture
) -> None:
    release = writer.forget("ada", report(0.04, 0.9, 0.9))
    digest = writer.ledger.state.adapters[release.adapters[0]].report
    path = writer.home.registry / blob_key(digest)
    path.chmod(0o600)
    path.write_bytes(b"{}")
    assert read(writer, backbone, release).measured == Measured(leak=0.0, drift=0.0)
    assert "can't be read" in caplog.text


def test_another_guard_is_the_same_stack_and_another_adapter_is_not(
    writer: Writer, backbone: Backbone
) -> None:
    first = read(writer, backbone, writer.forget("ada", {}))
    masked = read(writer, backbone, writer.mask("cy"))
    assert masked.stack == first.stack
    assert masked.guard > first.guard
    assert masked.erased == first.erased
    assert first.stack != read(writer, backbone, 0).stack


def test_a_release_with_both_kinds_of_adapter_answers_as_its_stack_does(
    writer: Writer, backbone: Backbone
) -> None:
    images = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        bare = backbone.model(images)
    first = writer.forget("ada", {}, kind="projection")
    second = writer.forget("bo", {})
    subjects = writer.ledger.state.jobs
    stack = [
        writer.adapter(subjects[job].subjects[0], second.adapters[:below], kind=kind)
        for below, (job, kind) in enumerate((("job-1", "projection"), ("job-2", "lora")))
    ]
    for release, below, groups in ((first, 1, 0), (second, 2, 1)):
        ready = read(writer, backbone, release)
        with torch.inference_mode():
            expected = adapted_model(backbone, stack[:below])(images)
        torch.testing.assert_close(ready.forward(images), expected, rtol=0, atol=0)
        assert not torch.allclose(expected, bare)
        assert ready.groups == groups
    back = read(writer, backbone, writer.roll_back(first.number))
    torch.testing.assert_close(back.forward(images), read(writer, backbone, first).forward(images))
    torch.testing.assert_close(read(writer, backbone, writer.roll_back(0)).forward(images), bare)


def test_a_projection_changed_on_disk_is_never_built(writer: Writer, backbone: Backbone) -> None:
    release = writer.forget("ada", {}, kind="projection")
    files = writer.ledger.state.adapters[release.adapters[0]].files
    assert set(files) == {"projection.safetensors", FACTS_FILE}
    path = writer.home.registry / blob_key(files["projection.safetensors"].digest)
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.chmod(0o600)
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match="sha256"):
        read(writer, backbone, release)


def test_a_release_with_a_damaged_blob_fails_its_verification_and_the_active_one_serves_on(
    writer: Writer, backbone: Backbone
) -> None:
    slot = Slot(TorchEngine(backbone.model), torch.zeros(1, 1, 8, 8))
    reader = ReleaseReader(
        open_ledger(writer.home, read_only=True), open_subjects(writer.home), backbone
    )
    first, second = writer.forget("ada", {}), writer.forget("bo", {})
    slot.flip(reader.ready(first.number, slot))
    added = writer.ledger.state.adapters[second.adapters[-1]]
    path = writer.home.registry / blob_key(added.files["adapter_model.safetensors"].digest)
    good = path.read_bytes()
    path.chmod(0o600)
    path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    with pytest.raises(IntegrityError) as caught:
        reader.ready(second.number, slot)
    state = failed(second.number, caught.value)
    assert (state.release, state.stage) == (second.number, "verified")
    assert state.problem is not None
    assert "sha256" in state.problem
    assert slot.active is not None
    assert slot.active.number == first.number
    path.unlink()
    with pytest.raises(RegistryError) as missing:
        reader.ready(second.number, slot)
    assert failed(second.number, missing.value).stage == "fetched"
    path.write_bytes(good)
    assert reader.ready(second.number, slot).number == second.number


def test_weights_that_compute_nonsense_fail_their_check_and_others_their_build() -> None:
    assert failed(3, SelfCheckError("not finite")).stage == "checked"
    assert failed(3, BuildError("another backbone")).stage == "built"
    assert failed(3, AdapterError("a key is missing")).stage == "verified"
