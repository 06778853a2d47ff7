"""Checkpoints in the authors' layout give the logits of an independent forward pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from forgetting.errors import BackboneError
from forgetting.measure.accuracy import margin_right, right
from forgetting.models.backbone import features_and_logits, load_backbone, save_backbone
from forgetting.models.face_checkpoint import load_face_transformer

SIDE, PATCH, DIM, DEPTH, HEADS, HIDDEN, CLASSES = 12, 4, 16, 2, 4, 40, 5
State = dict[str, Tensor]


def state(*, seed: int = 0) -> State:
    """A checkpoint in the authors' layout with random tensors."""
    shapes: dict[str, tuple[int, ...]] = {
        "pos_embedding": (1, (SIDE // PATCH) ** 2 + 1, DIM),
        "cls_token": (1, 1, DIM),
        "patch_to_embedding.weight": (DIM, PATCH * PATCH * 3),
        "patch_to_embedding.bias": (DIM,),
        "mlp_head.0.weight": (DIM,),
        "mlp_head.0.bias": (DIM,),
        "loss.weight": (CLASSES, DIM),
    }
    for i in range(DEPTH):
        at = f"transformer.layers.{i}"
        shapes |= {
            f"{at}.0.fn.norm.weight": (DIM,),
            f"{at}.0.fn.norm.bias": (DIM,),
            f"{at}.0.fn.fn.to_qkv.weight": (3 * DIM, DIM),
            f"{at}.0.fn.fn.to_out.0.weight": (DIM, DIM),
            f"{at}.0.fn.fn.to_out.0.bias": (DIM,),
            f"{at}.1.fn.norm.weight": (DIM,),
            f"{at}.1.fn.norm.bias": (DIM,),
            f"{at}.1.fn.fn.net.0.weight": (HIDDEN, DIM),
            f"{at}.1.fn.fn.net.0.bias": (HIDDEN,),
            f"{at}.1.fn.fn.net.3.weight": (DIM, HIDDEN),
            f"{at}.1.fn.fn.net.3.bias": (DIM,),
        }
    generator = torch.Generator().manual_seed(seed)
    return {key: 0.5 * torch.randn(shape, generator=generator) for key, shape in shapes.items()}


def original(s: State, x: Tensor) -> tuple[Tensor, Tensor]:
    """Embeddings and plain logits, implemented from the description of the authors' model."""
    n, grid = len(x), SIDE // PATCH
    # (n, 3, h, p, w, p) -> (n, h * w, p * p * 3)
    patches = x.reshape(n, 3, grid, PATCH, grid, PATCH).permute(0, 2, 4, 3, 5, 1)
    tokens = patches.reshape(n, grid * grid, -1) @ s["patch_to_embedding.weight"].T
    tokens = tokens + s["patch_to_embedding.bias"]
    tokens = torch.cat([s["cls_token"].expand(n, 1, DIM), tokens], dim=1) + s["pos_embedding"]

    def norm(t: Tensor, key: str) -> Tensor:
        mean, variance = t.mean(-1, keepdim=True), t.var(-1, correction=0, keepdim=True)
        return (t - mean) / (variance + 1e-5).sqrt() * s[f"{key}.weight"] + s[f"{key}.bias"]

    for i in range(DEPTH):
        at = f"transformer.layers.{i}"
        q, k, v = (norm(tokens, f"{at}.0.fn.norm") @ s[f"{at}.0.fn.fn.to_qkv.weight"].T).chunk(
            3, dim=-1
        )
        heads = []
        for h in range(HEADS):
            part = slice(h * DIM // HEADS, (h + 1) * DIM // HEADS)
            scores = q[..., part] @ k[..., part].transpose(1, 2) * DIM**-0.5
            heads.append(scores.softmax(dim=-1) @ v[..., part])
        out = torch.cat(heads, dim=-1) @ s[f"{at}.0.fn.fn.to_out.0.weight"].T
        tokens = tokens + out + s[f"{at}.0.fn.fn.to_out.0.bias"]
        inner = norm(tokens, f"{at}.1.fn.norm") @ s[f"{at}.1.fn.fn.net.0.weight"].T
        inner = F.gelu(inner + s[f"{at}.1.fn.fn.net.0.bias"])
        tokens = tokens + inner @ s[f"{at}.1.fn.fn.net.3.weight"].T
        tokens = tokens + s[f"{at}.1.fn.fn.net.3.bias"]
    e = norm(tokens[:, 0], "mlp_head.0")
    w = s["loss.weight"]
    return e, 64 * (e / e.norm(dim=1, keepdim=True)) @ (w / w.norm(dim=1, keepdim=True)).T


Write = Callable[[object], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(content: object) -> Path:
        torch.save(content, tmp_path / "Backbone.pth")
        return tmp_path / "Backbone.pth"

    return written


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    path = tmp_path / "labels.txt"
    path.write_text("\n".join(f"person {i}" for i in range(CLASSES)))
    return path


def test_embeddings_and_logits_are_those_of_the_original(write: Write, labels: Path) -> None:
    theirs = state()
    backbone = load_face_transformer(write(theirs), labels, num_heads=HEADS)
    x = torch.rand(6, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    expected_embedding, expected_logits = original(theirs, x)
    embedding, logits = features_and_logits(backbone.model, x)
    assert torch.allclose(embedding, expected_embedding, atol=1e-5, rtol=1e-5)
    assert torch.allclose(logits, expected_logits, atol=1e-5 * 64, rtol=1e-5)
    assert torch.allclose(logits / 64, expected_logits / 64, atol=1e-5)


def test_sizes_and_preprocessing_follow_from_the_tensors(write: Write, labels: Path) -> None:
    backbone = load_face_transformer(write(state()), labels, num_heads=HEADS)
    assert backbone.spec.model_args == {
        "img_size": SIDE,
        "patch_size": PATCH,
        "embed_dim": DIM,
        "depth": DEPTH,
        "mlp_ratio": HIDDEN / DIM,
        "num_heads": HEADS,
    }
    assert backbone.spec.preprocess.input_size == (3, SIDE, SIDE)
    assert backbone.spec.preprocess.mean == (0.0, 0.0, 0.0)
    assert backbone.spec.preprocess.std == (1.0, 1.0, 1.0)
    assert backbone.spec.classes[4] == "person 4"


def test_imported_checkpoint_is_saved_and_loaded_like_any_backbone(
    write: Write, labels: Path, tmp_path: Path
) -> None:
    backbone = load_face_transformer(write(state()), labels, num_heads=HEADS)
    save_backbone(tmp_path / "backbone", backbone)
    assert load_backbone(tmp_path / "backbone").fingerprint == backbone.fingerprint


def test_redundant_pairs_of_a_merged_checkpoint_are_left_out(write: Write, labels: Path) -> None:
    plain = load_face_transformer(write(state()), labels, num_heads=HEADS)
    with_pairs = state()
    for i in range(DEPTH):
        for layer, (rows, columns) in {0: (HIDDEN, DIM), 3: (DIM, HIDDEN)}.items():
            at = f"transformer.layers.{i}.1.fn.fn.net.{layer}"
            with_pairs[f"{at}.lora_A"] = torch.randn(8, columns)
            with_pairs[f"{at}.lora_B"] = torch.randn(rows, 8)
    again = load_face_transformer(write(with_pairs), labels, num_heads=HEADS)
    assert again.fingerprint == plain.fingerprint


def test_plain_and_margin_accuracy_differ_on_the_same_answers(write: Write, labels: Path) -> None:
    theirs = state()
    backbone = load_face_transformer(write(theirs), labels, num_heads=HEADS)
    x = torch.rand(40, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(2))
    embedding, logits = features_and_logits(backbone.model, x)
    y = logits.argmax(dim=1)
    head = backbone.model.get_classifier()  # type: ignore[operator]
    ahead = logits.topk(2).values.diff(dim=1).abs().flatten() > 64 * 0.35
    assert right(logits, y).value == 1.0
    assert margin_right(head, embedding, y).hits == int(ahead.sum()) < 40


def missing(s: State) -> object:
    del s["transformer.layers.1.0.fn.norm.bias"]
    return s


def extra(s: State) -> object:
    return {**s, "transformer.layers.0.0.fn.fn.to_qkv.lora_A": torch.zeros(1)}


def without_head(s: State) -> object:
    del s["loss.weight"]
    return s


def other_shape(s: State) -> object:
    return {**s, "transformer.layers.1.1.fn.fn.net.0.weight": torch.zeros(HIDDEN + 1, DIM)}


def flat(s: State) -> object:
    return {**s, "pos_embedding": s["pos_embedding"][0]}


def oblong(s: State) -> object:
    return {**s, "pos_embedding": torch.zeros(1, 9, DIM)}


def not_finite(s: State) -> object:
    s["cls_token"][0, 0, 0] = float("nan")
    return s


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (missing, r"missing transformer\.layers\.1\.0\.fn\.norm\.bias"),
        (extra, r"unexpected transformer\.layers\.0\.0\.fn\.fn\.to_qkv\.lora_A"),
        (without_head, r"missing loss\.weight"),
        (other_shape, r"layers\.1\.1\.fn\.fn\.net\.0\.weight has shape \(41, 16\)"),
        (flat, "pos_embedding has 2 axes, expected 3"),
        (oblong, "9 positions; expected square patches"),
        (not_finite, "cls_token has numbers that are not finite"),
        (lambda s: [1, 2], "holds list, expected a state dict"),
        (lambda s: {"epoch": 3}, "expected a state dict: a tensor for each name"),
        (lambda s: {}, "has not the layout of the authors' face backbone: missing .* more"),
    ],
)
def test_checkpoint_of_another_layout_is_refused_by_name(
    write: Write, labels: Path, damage: Callable[[State], object], message: str
) -> None:
    with pytest.raises(BackboneError, match=message):
        load_face_transformer(write(damage(state())), labels, num_heads=HEADS)


def test_number_of_heads_must_divide_the_width(write: Write, labels: Path) -> None:
    with pytest.raises(BackboneError, match="num_heads 3 must divide embed_dim 16"):
        load_face_transformer(write(state()), labels, num_heads=3)


def test_labels_must_be_as_many_as_the_heads_rows(write: Write, tmp_path: Path) -> None:
    (tmp_path / "two.txt").write_text("a\nb\n")
    with pytest.raises(BackboneError, match="loss.weight has 5 rows but .*two.txt has 2 names"):
        load_face_transformer(write(state()), tmp_path / "two.txt")


def test_missing_truncated_and_pickled_files_are_refused(
    write: Write, labels: Path, tmp_path: Path
) -> None:
    with pytest.raises(BackboneError, match=r"nowhere\.pth does not exist"):
        load_face_transformer(tmp_path / "nowhere.pth", labels)
    path = write(state())
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(BackboneError, match="not a whole torch file"):
        load_face_transformer(path, labels)
    path.write_bytes(b"")
    with pytest.raises(BackboneError, match="not a whole torch file"):
        load_face_transformer(path, labels)
    with pytest.raises(BackboneError, match="not a whole torch file of tensors"):
        load_face_transformer(write({"model": Path("x")}), labels)
