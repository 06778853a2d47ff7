"""`auto` measures once, keeps the result, and never prevents a start."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from forgetting.adapter.stack import EffectiveState
from forgetting.data.preprocess import Preprocess
from forgetting.models.backbone import Backbone, BackboneSpec, build_model, freeze
from serving.config.settings import EngineName, EngineSettings
from serving.config.sources import SettingsError, load_settings
from serving.replica.engines import EngineError
from serving.replica.engines.choice import (
    BATCHES,
    CANDIDATES,
    LARGEST_BATCH,
    Choice,
    choose,
    make_engine,
    measure,
)
from serving.replica.engines.onnx_runtime import OnnxEngine
from serving.replica.engines.torch_eager import TorchEngine

AUTO = EngineSettings()


@pytest.fixture
def backbone() -> Backbone:
    torch.set_num_threads(1)
    sizes = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 2, "num_heads": 2}
    preprocess = Preprocess(input_size=(1, 8, 8), mean=(0.5,), std=(0.5,))
    spec = BackboneSpec("vit_tiny_patch16_224", sizes, ("a", "b", "c"), preprocess)
    return freeze(build_model(spec), spec)


@pytest.fixture
def unwritable(backbone: Backbone) -> Backbone:
    """A backbone with an operator that ONNX lacks."""
    backbone.model.patch_embed = _Resized(backbone.model.patch_embed)  # type: ignore[arg-type]
    return backbone


class _Resized(nn.Module):
    def __init__(self, embed: nn.Module) -> None:
        super().__init__()
        self.embed = embed

    def forward(self, x: Tensor) -> Tensor:
        resized = nn.functional.interpolate(x, size=(8, 8), mode="bicubic", antialias=True)
        embedded: Tensor = self.embed(resized)
        return embedded


def _chosen(
    settings: EngineSettings,
    backbone: Backbone,
    graphs: Path,
    *,
    batch: int | None = None,
    threads: int = 1,
) -> Choice:
    return choose(settings, backbone, batch=batch, threads=threads, graphs=graphs)


def test_the_default_is_the_fast_one(backbone: Backbone, tmp_path: Path) -> None:
    assert load_settings(home=tmp_path).engine == AUTO == EngineSettings(name="auto")
    choice = _chosen(AUTO, backbone, tmp_path)
    assert choice.ms[choice.name, choice.batch] == min(choice.ms.values())


def test_auto_takes_the_fastest_and_says_how_fast_each_was(
    backbone: Backbone, tmp_path: Path
) -> None:
    choice = _chosen(AUTO, backbone, tmp_path)
    assert set(choice.ms) == {(name, batch) for name in CANDIDATES for batch in BATCHES}
    assert (choice.name, choice.batch) == min(choice.ms, key=choice.ms.__getitem__)
    assert choice.why == "measured now"
    said = f"{choice.name}, batches of at most {choice.batch} (measured now: onnxruntime "
    assert str(choice).startswith(said)


def test_a_later_start_remembers(backbone: Backbone, tmp_path: Path) -> None:
    _chosen(AUTO, backbone, tmp_path)
    (memory,) = tmp_path.glob("speed-*.json")
    ms = {"torch": {"4": 1.5, "16": 3.0}, "onnxruntime": {"4": 2.5, "16": 2.0}}
    memory.write_text(json.dumps({"ms_per_image": ms}))
    choice = _chosen(AUTO, backbone, tmp_path)
    assert (choice.name, choice.batch) == ("torch", 4)
    assert choice.why == "measured at an earlier start"
    choice = _chosen(EngineSettings(name="onnxruntime"), backbone, tmp_path)
    assert (choice.name, choice.batch, choice.why) == ("onnxruntime", 16, "as asked for")
    assert choice.ms == {("onnxruntime", 4): 2.5, ("onnxruntime", 16): 2.0}
    assert _chosen(AUTO, backbone, tmp_path, threads=2).why == "measured now"


def test_a_batch_that_was_asked_for_is_measured_and_kept(
    backbone: Backbone, tmp_path: Path
) -> None:
    choice = _chosen(AUTO, backbone, tmp_path, batch=7)
    assert choice.batch == 7
    assert set(choice.ms) == {(name, 7) for name in CANDIDATES}
    # Neither measurement overwrites the other.
    assert _chosen(AUTO, backbone, tmp_path).why == "measured now"
    for batch in (7, None):
        again = _chosen(AUTO, backbone, tmp_path, batch=batch)
        assert again.why == "measured at an earlier start"


def test_nothing_is_measured_where_there_is_nothing_to_choose(
    backbone: Backbone, tmp_path: Path
) -> None:
    choice = _chosen(EngineSettings(name="torch"), backbone, tmp_path, batch=3)
    assert choice == Choice("torch", 3, "as asked for")
    choice = _chosen(EngineSettings(name="torch-compiled"), backbone, tmp_path)
    assert choice == Choice("torch-compiled", LARGEST_BATCH, "as asked for")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "written",
    [
        "",
        "[]",
        '{"ms_per_image": {"torch": {"4": 1}}}',
        '{"ms_per_image": {"torch": {"four": 1}}}',
        '{"ms_per_image": {"torch": 1.0, "onnxruntime": 2.0}}',
        '{"torch": 1}',
    ],
)
def test_a_damaged_memory_is_measured_anew(
    backbone: Backbone, tmp_path: Path, written: str
) -> None:
    _chosen(AUTO, backbone, tmp_path)
    (memory,) = tmp_path.glob("speed-*.json")
    memory.write_text(written)
    assert _chosen(AUTO, backbone, tmp_path).why == "measured now"


def test_auto_falls_back_to_torch_and_logs_why(
    unwritable: Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        choice = _chosen(AUTO, unwritable, tmp_path)
    assert choice.name == "torch"
    assert "can't be written as an ONNX graph" in choice.why
    assert "can't be written as an ONNX graph" in caplog.text
    assert isinstance(_made(choice.name, unwritable, tmp_path), TorchEngine)


def test_an_engine_that_was_asked_for_by_name_isnt_replaced(
    unwritable: Backbone, tmp_path: Path
) -> None:
    with pytest.raises(EngineError, match="can't be written as an ONNX graph"):
        _chosen(EngineSettings(name="onnxruntime"), unwritable, tmp_path)
    choice = _chosen(EngineSettings(name="torch"), unwritable, tmp_path)
    assert (choice.name, choice.why) == ("torch", "as asked for")
    assert {name for name, _ in choice.ms} == {"torch"}


@pytest.mark.parametrize("settings", [{"device": "cuda"}, {"precision": "bfloat16"}])
def test_auto_leaves_what_only_torch_can_to_torch(
    backbone: Backbone, tmp_path: Path, settings: dict[str, str]
) -> None:
    choice = _chosen(EngineSettings(name="auto", **settings), backbone, tmp_path)
    assert (choice.name, choice.batch) == ("torch", LARGEST_BATCH)
    assert not list(tmp_path.iterdir())


def test_a_choice_is_made_before_an_engine(backbone: Backbone, tmp_path: Path) -> None:
    assert isinstance(_made("torch", backbone, tmp_path), TorchEngine)
    assert isinstance(_made("onnxruntime", backbone, tmp_path), OnnxEngine)
    with pytest.raises(EngineError, match="auto"):
        _made("auto", backbone, tmp_path)


def _made(name: str, backbone: Backbone, graphs: Path) -> object:
    settings = EngineSettings.model_validate({"name": name})
    return make_engine(settings, backbone, threads=1, graphs=graphs)


def test_the_best_turn_of_each_counts_and_threads_are_given_back(backbone: Backbone) -> None:
    forwards: dict[EngineName, Callable[[Tensor], Tensor]] = {}
    forwards["torch"] = TorchEngine(backbone.model).build(EffectiveState())
    turns = 0

    def slow_at_first(images: Tensor) -> Tensor:
        nonlocal turns
        turns += 1
        time.sleep(0.2 if turns == 2 else 0.004)
        return images

    before = torch.get_num_threads()
    forwards["onnxruntime"] = slow_at_first
    ms = measure(forwards, [("torch", 2), ("onnxruntime", 2)], (1, 8, 8), threads=2)
    assert torch.get_num_threads() == before
    assert 2 <= ms["onnxruntime", 2] < 50


def test_settings_name_the_engine_and_refuse_what_cant_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_settings().engine.name == "auto"
    assert load_settings(engine={"name": "torch"}).engine.name == "torch"
    monkeypatch.setenv("LETHE_ENGINE__NAME", "onnxruntime")
    assert load_settings().engine.name == "onnxruntime"
    with pytest.raises(SettingsError, match=r"engine\.name: .*'torch-compiled'"):
        load_settings(engine={"name": "tensorrt"})
    with pytest.raises(SettingsError, match="device cpu with precision float32"):
        load_settings(engine={"name": "onnxruntime", "device": "cuda"})
