"""One contract for every engine: the reference's outputs, and releases that don't affect others."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from forgetting.adapter.edit_adapter import EditAdapter
from forgetting.adapter.files import AdapterFacts
from forgetting.adapter.low_rank import Adapter, AnyAdapter
from forgetting.adapter.stack import EffectiveState, effective_state, install, shared_copy
from forgetting.data.preprocess import Preprocess
from forgetting.erasure.edit import FeatureEdit, LowRankEdit
from forgetting.errors import TargetError
from forgetting.models import face_transformer
from forgetting.models.backbone import Backbone, BackboneSpec, build_model, freeze
from forgetting.models.targets import find_groups
from serving.replica.engines import Engine, EngineError
from serving.replica.engines.onnx_graph import export, graph_name
from serving.replica.engines.onnx_runtime import OnnxEngine
from serving.replica.engines.torch_compiled import CompiledEngine
from serving.replica.engines.torch_eager import TorchEngine
from serving.replica.slot import Slot

TOLERANCE = 1e-4
SIZE = (3, 16, 16)


def _backbone(model: str, *, classes: int = 7, size: tuple[int, int, int] = SIZE) -> Backbone:
    sizes = {"img_size": size[1], "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2}
    preprocess = Preprocess(input_size=size, mean=(0.5,) * size[0], std=(0.5,) * size[0])
    spec = BackboneSpec(model, sizes, tuple(f"class {i}" for i in range(classes)), preprocess)
    torch.manual_seed(0)
    built = build_model(spec)
    with torch.no_grad():  # biases, norms and tokens that have an effect, unlike a fresh model's
        for parameter in built.parameters():
            parameter.add_(torch.randn_like(parameter) / 4)
    return freeze(built, spec)


@pytest.fixture(scope="module", params=["vit_tiny_patch16_224", face_transformer.NAME])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    torch.set_num_threads(1)
    return _backbone(request.param)


ENGINES = [
    "torch",
    "onnxruntime",
    pytest.param("torch-compiled", marks=pytest.mark.slow),  # compiling takes a minute
]


@pytest.fixture(scope="module", params=ENGINES)
def engine(request: pytest.FixtureRequest, backbone: Backbone) -> Engine:
    match request.param:
        case "torch":
            return TorchEngine(backbone.model)
        case "torch-compiled":
            return CompiledEngine(backbone.model, input_size=SIZE)
        case _:
            return OnnxEngine(backbone)


def _facts(backbone: Backbone) -> AdapterFacts:
    return AdapterFacts(
        backbone=backbone.fingerprint,
        stack=(),
        subjects=("subject-1",),
        method="by hand",
        config={},
        seed=0,
        steps=0,
        data_digest="sha256:00",
        code_version="0",
        groups_kept=0,
        groups_total=3,
    )


def adapter(backbone: Backbone, *, blocks: tuple[int, ...], seed: int) -> Adapter:
    generator = torch.Generator().manual_seed(seed)
    pairs = {}
    for path in (path for block in blocks for path in find_groups(backbone.model)[block].paths):
        out, width = backbone.model.get_parameter(f"{path}.weight").shape
        a = torch.randn(2, width, generator=generator) / 4
        pairs[path] = (a, torch.randn(out, 2, generator=generator) / 4)
    return Adapter(pairs, _facts(backbone))


def projection(backbone: Backbone, *, seed: int) -> EditAdapter:
    generator = torch.Generator().manual_seed(seed)
    a = torch.randn(2, 16, generator=generator)
    mean, shift = torch.randn(2, 16, generator=generator)
    erasure = LowRankEdit(a, torch.linalg.pinv(a).contiguous(), mean, shift)
    return EditAdapter(erasure, _facts(backbone))


def images(count: int, *, seed: int = 0, size: tuple[int, int, int] = SIZE) -> Tensor:
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(seed))


def reference(backbone: Backbone, state: EffectiveState, x: Tensor) -> Tensor:
    """Logits of the model with `state` installed, without an engine."""
    model = shared_copy(backbone.model)
    install(model, state)
    with torch.no_grad():
        logits: Tensor = model(x)
    return logits


def reference_feature(backbone: Backbone, state: EffectiveState, x: Tensor) -> Tensor:
    """What the head of the model with `state` installed is given, without an engine."""
    model = shared_copy(backbone.model)
    install(model, state)
    seen: list[Tensor] = []
    head: nn.Module = model.get_classifier()  # type: ignore[operator]
    hook = head.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        model(x)
    hook.remove()
    return seen[0]


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=TOLERANCE)


Stack = Callable[[Backbone], list[AnyAdapter]]
STACKS: dict[str, Stack] = {
    "bare": lambda b: [],
    "one adapter": lambda b: [adapter(b, blocks=(1,), seed=1)],
    "three stacked": lambda b: [adapter(b, blocks=(0, s % 3), seed=s) for s in (1, 2, 3)],
    "feature edit": lambda b: [projection(b, seed=1)],
    "all of it": lambda b: [
        adapter(b, blocks=(2,), seed=1),
        projection(b, seed=2),
        replace(adapter(b, blocks=(0, 2), seed=3), erasure=projection(b, seed=4).erasure),
    ],
}


@pytest.mark.parametrize("stack", STACKS)
def test_logits_are_those_of_the_reference(engine: Engine, backbone: Backbone, stack: str) -> None:
    state = effective_state(backbone.model, STACKS[stack](backbone))
    x = images(5)
    found = engine.build(state)(x)
    close(found, reference(backbone, state, x))
    if stack != "bare":
        assert (found - reference(backbone, EffectiveState(), x)).abs().max() > 0.01


@pytest.mark.parametrize("stack", STACKS)
def test_features_are_what_the_reference_s_head_reads_and_come_with_the_same_logits(
    engine: Engine, backbone: Backbone, stack: str
) -> None:
    state = effective_state(backbone.model, STACKS[stack](backbone))
    forward = engine.build(state)
    for count in (1, 5):
        x = images(count)
        features, logits = forward.embed(x)
        assert (features.dtype, logits.dtype) == (torch.float32, torch.float32)
        close(features, reference_feature(backbone, state, x))
        close(logits, forward(x))
        close(logits, reference(backbone, state, x))
        if stack != "bare":  # weights and edit are both in the features
            bare = reference_feature(backbone, EffectiveState(), x)
            assert (features - bare).abs().max() > 0.01


def test_logits_are_float32_for_every_size_of_a_batch(engine: Engine, backbone: Backbone) -> None:
    state = effective_state(backbone.model, STACKS["one adapter"](backbone))
    forward = engine.build(state)
    x = images(9)
    expected = reference(backbone, state, x)
    for count in (1, 2, 3, 9, 1):
        found = forward(x[:count])
        assert found.dtype == torch.float32
        assert found.shape == (count, 7)
        close(found, expected[:count])


def test_images_that_are_no_contiguous_block_are_read_right(
    engine: Engine, backbone: Backbone
) -> None:
    x = images(4).permute(0, 1, 3, 2)[::2]
    close(engine.build(EffectiveState())(x), reference(backbone, EffectiveState(), x))


def test_an_answer_is_not_overwritten_by_the_next_one(engine: Engine) -> None:
    forward = engine.build(EffectiveState())
    features, logits = forward.embed(images(2, seed=1))
    kept = features.clone(), logits.clone()
    forward.embed(images(2, seed=2))
    forward(images(2, seed=3))
    torch.testing.assert_close((features, logits), kept, rtol=0, atol=0)


def test_what_is_built_leaves_what_was_built_alone(engine: Engine, backbone: Backbone) -> None:
    x = images(3)
    bare = engine.build(EffectiveState())
    before = bare(x)
    first = engine.build(effective_state(backbone.model, STACKS["one adapter"](backbone)))
    answer = first(x)
    engine.build(effective_state(backbone.model, STACKS["all of it"](backbone)))(x)
    torch.testing.assert_close(bare(x), before, rtol=0, atol=0)
    torch.testing.assert_close(first(x), answer, rtol=0, atol=0)
    again = engine.build(EffectiveState())
    torch.testing.assert_close(again(x), before, rtol=0, atol=0)


def test_a_rollback_gives_the_same_logits_again(engine: Engine, backbone: Backbone) -> None:
    slot = Slot(engine, images(1), resident=2)
    x = images(3)
    states = {
        name: effective_state(backbone.model, STACKS[name](backbone))
        for name in ("one adapter", "three stacked", "all of it")
    }
    first = slot.forward_for(("1",), lambda: states["one adapter"])(x)
    for name in ("three stacked", "all of it"):  # drops the first one
        slot.forward_for((name,), lambda name=name: states[name])
    again = slot.forward_for(("1",), lambda: states["one adapter"])(x)
    torch.testing.assert_close(again, first, rtol=0, atol=0)
    close(again, reference(backbone, states["one adapter"], x))


def test_forwards_and_builds_at_the_same_time_are_safe(engine: Engine, backbone: Backbone) -> None:
    states = [
        effective_state(backbone.model, [adapter(backbone, blocks=(block,), seed=block)])
        for block in (0, 1, 2)
    ]
    x = images(4)
    expected = [reference(backbone, state, x) for state in states]
    forwards = [engine.build(state) for state in states]
    ended = threading.Event()

    def build() -> int:
        built = 0
        while not ended.is_set():
            close(engine.build(states[built % 3])(x), expected[built % 3])
            built += 1
        return built

    def ask(which: int) -> None:
        for _ in range(40):
            close(forwards[which](x), expected[which])

    with ThreadPoolExecutor(7) as pool:
        building = pool.submit(build)
        asking = [pool.submit(ask, which) for which in (0, 1, 2) for _ in range(2)]
        for future in asking:
            future.result()
        ended.set()
        assert building.result() > 0


def test_a_state_that_doesnt_fit_the_backbone_is_refused(
    engine: Engine, backbone: Backbone
) -> None:
    with pytest.raises((EngineError, AttributeError)):
        engine.build(EffectiveState({"blocks.9.mlp.fc1": torch.zeros(64, 16)}))
    with pytest.raises(TargetError, match="17"):
        engine.build(EffectiveState(edit=FeatureEdit(torch.eye(17), torch.zeros(17))))


def test_a_release_costs_only_what_it_changes(backbone: Backbone) -> None:
    """Only the changed tensors are new memory, and they are not copied either."""
    state = effective_state(backbone.model, STACKS["all of it"](backbone))
    assert state.edit is not None
    mine = {t.data_ptr() for t in (*state.weights.values(), state.edit.matrix, state.edit.offset)}
    theirs = {parameter.data_ptr() for parameter in backbone.model.parameters()}
    engine = OnnxEngine(backbone)
    bare = engine.build(EffectiveState())
    fed = {value.data_ptr() for value in engine.build(state)._feeds.values()}
    assert mine <= fed
    assert fed - mine <= theirs | {value.data_ptr() for value in bare._feeds.values()}


# -- the graph


def test_the_graph_holds_no_weights(backbone: Backbone) -> None:
    graph = export(backbone)
    for parameter in backbone.model.parameters():
        if parameter.numel() >= 16:
            assert parameter.detach().numpy().tobytes() not in graph


def test_a_graph_is_kept_and_used_by_the_next_start(backbone: Backbone, tmp_path: Path) -> None:
    OnnxEngine(backbone, graphs=tmp_path)
    kept = tmp_path / f"{graph_name(backbone)}.onnx"
    written = kept.stat().st_mtime_ns
    close(
        OnnxEngine(backbone, graphs=tmp_path).build(EffectiveState())(images(2)),
        reference(backbone, EffectiveState(), images(2)),
    )
    assert kept.stat().st_mtime_ns == written
    assert [path.name for path in tmp_path.iterdir()] == [kept.name]


@pytest.mark.parametrize("damage", [b"", b"no graph", None])
def test_a_damaged_graph_is_made_anew(
    backbone: Backbone, tmp_path: Path, damage: bytes | None
) -> None:
    whole = export(backbone)
    kept = tmp_path / f"{graph_name(backbone)}.onnx"
    kept.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    OnnxEngine(backbone, graphs=tmp_path)
    assert kept.read_bytes() == whole


def test_a_kept_graph_of_another_computation_is_refused(backbone: Backbone, tmp_path: Path) -> None:
    other = _backbone(backbone.spec.model, size=SIZE)
    for block in other.model.blocks:  # type: ignore[union-attr]
        block.mlp.act = nn.ReLU()
    (tmp_path / f"{graph_name(backbone)}.onnx").write_bytes(export(other))
    with pytest.raises(EngineError, match="doesn't give PyTorch's logits"):
        OnnxEngine(backbone, graphs=tmp_path)


def test_a_graph_with_other_features_is_refused_though_its_logits_are_right(
    backbone: Backbone, tmp_path: Path
) -> None:
    other = _backbone(backbone.spec.model, size=SIZE)
    other.model.norm.__class__ = _Doubled
    if type(other.model.head) is nn.Linear:  # a cosine head doesn't see lengths
        other.model.head.__class__ = _OfHalf
    (tmp_path / f"{graph_name(backbone)}.onnx").write_bytes(export(other))
    with pytest.raises(EngineError, match="doesn't give PyTorch's features"):
        OnnxEngine(backbone, graphs=tmp_path)


def test_a_folder_that_cant_be_written_only_costs_the_next_start_time(
    backbone: Backbone, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    engine = OnnxEngine(backbone, graphs=tmp_path / "file" / "graphs")
    x = images(2)
    close(engine.build(EffectiveState())(x), reference(backbone, EffectiveState(), x))


def test_graphs_are_named_by_shapes_and_not_by_weights() -> None:
    small, again = _backbone("vit_tiny_patch16_224"), _backbone("vit_tiny_patch16_224")
    with torch.no_grad():
        next(again.model.parameters()).add_(1)
    assert graph_name(small) == graph_name(again)
    assert graph_name(small) != graph_name(_backbone("vit_tiny_patch16_224", classes=8))


def test_a_model_that_onnx_has_no_operator_for_is_refused_with_the_reason(
    capsys: pytest.CaptureFixture[str],
) -> None:
    backbone = _backbone("vit_tiny_patch16_224")
    embed = backbone.model.patch_embed
    backbone.model.patch_embed = _Before(embed)  # type: ignore[arg-type]
    with pytest.raises(EngineError, match=r"can't be written as an ONNX graph .*bicubic.*torch"):
        OnnxEngine(backbone)
    assert capsys.readouterr().out == ""


class _Before(nn.Module):
    """A patch embedding behind an operator that ONNX lacks."""

    def __init__(self, embed: nn.Module) -> None:
        super().__init__()
        self.embed = embed

    def forward(self, x: Tensor) -> Tensor:
        resized = torch.nn.functional.interpolate(x, size=(16, 16), mode="bicubic", antialias=True)
        embedded: Tensor = self.embed(resized)
        return embedded


class _Doubled(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class _OfHalf(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x / 2)


# -- PyTorch's own ways


def test_bfloat16_is_near_the_reference_and_not_equal_to_it(backbone: Backbone) -> None:
    x = images(8)
    found = TorchEngine(backbone.model, bfloat16=True).build(EffectiveState())(x)
    expected = reference(backbone, EffectiveState(), x)
    assert found.dtype == torch.float32
    error = (found - expected).abs().max() / expected.abs().max()
    assert 1e-5 < error < 0.05


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_isnt_there_is_named() -> None:
    with pytest.raises(EngineError, match="no GPU here"):
        TorchEngine(nn.Linear(2, 2), device="cuda")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_references_logits(backbone: Backbone) -> None:
    state = effective_state(backbone.model, STACKS["all of it"](backbone))
    found = TorchEngine(backbone.model, device="cuda").build(state)(images(3))
    assert {tensor.device.type for tensor in backbone.model.parameters()} == {"cpu"}
    close(found, reference(backbone, state, images(3)))
