"""Pre-train a small ViT on an image set, as a backbone.

AdamW; one cycle of the rate, up to its peak and down to zero; label smoothing; affine augmentation
of each sample. A cosine head is trained with its margin and without smoothing, as in the GS-LoRA
papers. The last weights are the result: nothing is selected on test data.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from forgetting.data.augment import Augmentation, augmented
from forgetting.data.image_set import ImageSet, indices, to_tensors
from forgetting.data.preprocess import Preprocess, preprocess_of
from forgetting.errors import TrainingError
from forgetting.measure.accuracy import Share, share_right
from forgetting.models.backbone import (
    Backbone,
    BackboneSpec,
    build_model,
    features_and_logits,
    freeze,
)
from forgetting.models.face_transformer import CosineHead
from forgetting.models.lite_hybrid import LiteHybrid, remember_stem, stem_outputs
from forgetting.training.input_choice import choose_input

SMALL_VIT = "vit_tiny_patch16_224"
# A frozen stem computes this many versions of each training image; each step draws from them.
STEM_VIEWS = 3
# Below this share of held-out images, `Pretrained.warning` says that the accuracy is poor.
POOR_BELOW = 0.8


@dataclass(frozen=True)
class PretrainConfig:
    """How to pre-train: `steps` of the optimizer, with `batch` images in each.

    `dropout` switches the model's own dropout on. Without it, a step on a CPU takes two thirds of
    the time. `clip` is the highest norm that the gradient may have.
    """

    steps: int = 800
    batch: int = 64
    peak_rate: float = 1e-3
    weight_decay: float = 0.05
    smoothing: float = 0.05
    dropout: bool = True
    clip: float | None = None
    augmentation: Augmentation = Augmentation()


@dataclass(frozen=True)
class PretrainProgress:
    step: int
    steps: int
    loss: float
    val_accuracy: float | None


@dataclass(frozen=True)
class Pretrained:
    """The backbone, its accuracy on the test images, and what the training took.

    `chosen` says which input the model has, and why.
    """

    backbone: Backbone
    test: Share
    val: Share
    seconds: float
    steps: int
    chosen: str

    @property
    def warning(self) -> str | None:
        """A sentence if fewer than `POOR_BELOW` of the test images are answered right.

        The limit is a plain number, for every set. A class that the backbone hardly knows can't be
        seen to be forgotten.
        """
        if self.test.value >= POOR_BELOW:
            return None
        return (
            f"the held-out accuracy, {self.test.value:.1%}, is below {POOR_BELOW:.0%}: where the "
            "model does not recognise a class, forgetting it proves nothing; try more steps, more "
            "images, or another model"
        )


def small_vit(images: ImageSet) -> tuple[str, dict[str, Any], Preprocess]:
    """A model for small images on a CPU: timm name, arguments and preprocessing.

    Tiny images give 16 tokens of 4x4 pixels, larger ones 36 tokens of 8x8. `choose_input` has the
    rule and looks at every image's header.

    Raises:
        DataError: A file can't be read or is no image.
    """
    choice = choose_input(images)
    arguments = {
        "img_size": choice.side,
        "patch_size": choice.patch,
        "embed_dim": 96,
        "depth": 6,
        "num_heads": 3,
        "class_token": False,
        "global_pool": "avg",
    }
    preprocess = Preprocess(
        input_size=(choice.channels, choice.side, choice.side),
        mean=(0.5,) * choice.channels,
        std=(0.25,) * choice.channels,
        crop_mode="squash",
    )
    return SMALL_VIT, arguments, preprocess


def pretrain(
    images: ImageSet,
    *,
    model: str | None = None,
    model_args: Mapping[str, Any] | None = None,
    preprocess: Preprocess | None = None,
    config: PretrainConfig = PretrainConfig(),
    progress: Callable[[PretrainProgress], None] | None = None,
    seed: int = 0,
) -> Pretrained:
    """Train a ViT from scratch on the train split.

    The frozen stem of a `LiteHybrid` gets its ImageNet weights and isn't trained. It is computed
    for `STEM_VIEWS` versions of each training image only: the image itself and augmented ones.

    Args:
        images: The image set; its classes become the head's rows.
        model: A timm ViT name; None takes `small_vit(images)`.
        model_args: Arguments of that model, without the number of classes and channels.
        preprocess: Preprocessing for that model; None takes timm's for a named model.
        config: Hyper-parameters.
        progress: Called about once a second; may raise to cancel.
        seed: Seed of the weights, the order of the images and their augmentation.

    Raises:
        TrainingError: The loss became NaN or infinite.
        BackboneError: timm can't build the model, it isn't a ViT, or the weights of its frozen stem
            are not installed.
        DataError: An image can't be decoded.
    """
    started = time.monotonic()
    spec = _spec(images, model=model, model_args=model_args, preprocess=preprocess)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # timm draws the initial weights from the global generator
        vit = build_model(spec)
    if isinstance(vit, LiteHybrid):
        vit.stem.load_imagenet()
        remember_stem(vit)
    generator = torch.Generator().manual_seed(seed)
    train = to_tensors(images, indices(images, "train"), spec.preprocess)
    val = to_tensors(images, indices(images, "val"), spec.preprocess)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # dropout draws from the global generator too
        _fit(vit, train, config=config, progress=progress, generator=generator)
    backbone = freeze(vit, spec)
    x, y = to_tensors(images, indices(images, "test"), spec.preprocess)
    return Pretrained(
        backbone=backbone,
        test=share_right(vit, x, y),
        val=share_right(vit, *val),
        seconds=time.monotonic() - started,
        steps=config.steps,
        chosen=_chosen(images, spec, asked=(model, model_args, preprocess)),
    )


def _chosen(
    images: ImageSet,
    spec: BackboneSpec,
    *,
    asked: tuple[str | None, Mapping[str, Any] | None, Preprocess | None],
) -> str:
    """Which input the model has, and who chose it."""
    model, model_args, preprocess = asked
    channels, height, width = spec.preprocess.input_size
    if model is None and preprocess is None:
        choice = choose_input(images)
        if (height, width) == (choice.side, choice.side):
            return choice.why
    reason = "as its caller says" if preprocess or model_args else f"the one of {spec.model}"
    return f"{width}x{height} pixels, {'grey' if channels == 1 else 'colour'}: {reason}"


def _spec(
    images: ImageSet,
    *,
    model: str | None,
    model_args: Mapping[str, Any] | None,
    preprocess: Preprocess | None,
) -> BackboneSpec:
    if model is None:
        model, chosen, own = small_vit(images)
        arguments = {**chosen, **(model_args or {})}
        side = int(arguments["img_size"])
        own = replace(own, input_size=(own.input_size[0], side, side))
        return BackboneSpec(model, arguments, images.classes, preprocess or own)
    arguments = dict(model_args or {})
    if preprocess is None:
        colour = Preprocess(input_size=(3, 0, 0), mean=(), std=())
        preprocess = preprocess_of(
            build_model(BackboneSpec(model, arguments, images.classes, colour))
        )
    return BackboneSpec(model, arguments, images.classes, preprocess)


def _inputs(
    vit: nn.Module, x: Tensor, config: PretrainConfig, generator: torch.Generator
) -> Callable[[Tensor], Tensor]:
    """A function from rows of x to their inputs of one step, augmented."""
    if not isinstance(vit, LiteHybrid):
        return lambda rows: augmented(x[rows], config.augmentation, generator=generator)
    views = [stem_outputs(vit, x).half()]  # half the memory; only the training sees it
    for view in range(1, STEM_VIEWS):
        # The same views for every seed, so that one process computes them once. (A reference has
        # fewer images, and so views of its own.)
        moved = augmented(x, config.augmentation, generator=torch.Generator().manual_seed(view))
        views.append(stem_outputs(vit, moved).half())

    def drawn(rows: Tensor) -> Tensor:
        which = torch.randint(STEM_VIEWS, (len(rows),), generator=generator)
        chosen = zip(which.tolist(), rows.tolist(), strict=True)
        maps = torch.stack([views[view][row] for view, row in chosen]).float()
        if config.augmentation.flip:
            # A mirrored map is nearly the map of the mirrored image.
            mirrored = torch.rand(len(rows), generator=generator) < 0.5
            maps[mirrored] = maps[mirrored].flip(-1)
        return maps

    return drawn


def _fit(
    vit: nn.Module,
    train: tuple[Tensor, Tensor],
    *,
    config: PretrainConfig,
    progress: Callable[[PretrainProgress], None] | None,
    generator: torch.Generator,
) -> None:
    """Train `vit` in place."""
    x, y = train
    inputs_of = _inputs(vit, x, config, generator)
    decayed = [p for p in vit.parameters() if p.ndim > 1]
    plain = [p for p in vit.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": config.weight_decay},
            {"params": plain, "weight_decay": 0.0},
        ],
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, config.peak_rate, total_steps=config.steps, pct_start=0.15
    )
    vit.train()
    if not config.dropout:
        for module in vit.modules():
            if isinstance(module, nn.Dropout):
                module.eval()
    order = torch.empty(0, dtype=torch.int64)
    told = time.monotonic()
    for step in range(1, config.steps + 1):
        if len(order) < min(config.batch, len(x)):
            order = torch.cat([order, torch.randperm(len(x), generator=generator)])
        rows, order = order[: config.batch], order[config.batch :]
        loss = _loss(vit, inputs_of(rows), y[rows], smoothing=config.smoothing)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"pre-training broke down at step {step}: the loss is {loss.item()}; lower the "
                f"peak rate (now {config.peak_rate})"
            )
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        if config.clip is not None:
            nn.utils.clip_grad_norm_(vit.parameters(), config.clip)
        optimizer.step()
        schedule.step()
        if progress is not None and (time.monotonic() - told > 1 or step == config.steps):
            told = time.monotonic()
            progress(PretrainProgress(step, config.steps, loss.item(), None))
    vit.eval()


def _loss(vit: nn.Module, x: Tensor, y: Tensor, *, smoothing: float) -> Tensor:
    model: Any = vit
    head = model.get_classifier()
    if isinstance(head, CosineHead):
        embedding, _ = features_and_logits(vit, x)
        return F.cross_entropy(head.margin_logits(embedding, y), y)
    return F.cross_entropy(vit(x), y, label_smoothing=smoothing)
