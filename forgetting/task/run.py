"""One forget task from end to end: from images and a stack to an adapter with its report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

import torch
from torch import nn

from forgetting.adapter.files import AdapterFacts, code_version
from forgetting.adapter.low_rank import Adapter, AnyAdapter, from_files, to_files
from forgetting.adapter.stack import adapted_model
from forgetting.attacks.head import bare_head
from forgetting.data.image_set import ImageSet, class_index, for_classes, indices, to_tensors
from forgetting.data.roles import TaskClasses, training_data
from forgetting.data.samples import ForgetData, Samples
from forgetting.errors import DataError
from forgetting.models.backbone import Backbone
from forgetting.report.figures import Report
from forgetting.report.gates import GateConfig, GateResult, judge
from forgetting.task.outcome import Cost, Models, measure_task
from forgetting.training.config import TrainConfig
from forgetting.training.progress import Progress
from forgetting.training.sparse_lora import train

METHOD = "lethe"
REPLAY = 640
"""Retain images to replay, spread over the classes; but at least `REPLAY_PER_CLASS` of each class,
if it has that many."""
REPLAY_PER_CLASS = 20
# A person can follow four looks a second. Training steps are faster.
_LEAST_PAUSE = 0.25


@dataclass(frozen=True)
class TaskResult:
    """An adapter, its files, its report and its verdicts. It may be published if all passed."""

    adapter: AnyAdapter
    files: Mapping[str, bytes]
    report: Report
    gates: tuple[GateResult, ...]

    @property
    def passed(self) -> bool:
        return all(gate.passed for gate in self.gates)


def run_task(
    backbone: Backbone,
    stack: Sequence[AnyAdapter],
    *,
    images: ImageSet,
    forget: Sequence[str],
    earlier: Sequence[str],
    withheld: Sequence[str] = (),
    subjects: Mapping[str, str],
    stack_ids: Sequence[str],
    config: TrainConfig | None = None,
    gates: GateConfig | None = None,
    seed: int = 0,
    progress: Callable[[Progress], None] | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> TaskResult:
    """Learn to forget some classes on top of a stack, and judge the result on held-out images.

    Args:
        backbone: The frozen backbone.
        stack: The adapters in force, bottom first.
        images: Train, val and test images. Its class names must be among the backbone's. A
            retained class without training images is not replayed, and is reported as `acc_m`.
            The report counts retained classes without test images as unmeasured.
        forget: Names of the classes to forget now.
        earlier: Names of all classes that earlier tasks forgot.
        withheld: Names of other classes under erasure, which are masked but still in the weights.
            Their images are neither replayed nor measured.
        subjects: Subject id of every class in `forget` and `earlier`.
        stack_ids: Ids of the adapters in `stack`, in the same order.
        config: Hyper-parameters; None takes the defaults.
        gates: Limits; None takes the defaults.
        seed: Seed of the replay and the training. On one thread the same seed gives the same bytes.
        progress: Called at most four times a second; may raise to cancel.
        clock: Gives the seconds that are reported.

    Returns:
        The adapter, its files, the report and the verdicts, passed or not.

    Raises:
        DataError: A class is unknown or named twice, has no subject or, if it is to be forgotten,
            no training images; fewer than two classes would be left; or an image can't be decoded.
        BackboneError: The model's head is neither linear nor cosine.
        TargetError: The backbone's FFNs are not recognised.
        TrainingError: Training gave nothing that could be published.
    """
    config = config or TrainConfig()
    generator = torch.Generator().manual_seed(seed)
    task = prepared(
        backbone,
        stack,
        images=images,
        forget=forget,
        earlier=earlier,
        withheld=withheld,
        subjects=subjects,
        stack_ids=stack_ids,
        replay_per_class=config.replay_per_class,
        generator=generator,
    )
    result = train(
        task.weights,
        task.data,
        original=backbone.model,
        config=config,
        generator=generator,
        progress=_throttled(progress, clock=clock),
        clock=clock,
    )
    adapter = Adapter(
        pairs=result.pairs,
        facts=AdapterFacts(
            backbone=backbone.fingerprint,
            stack=tuple(stack_ids),
            subjects=tuple(subjects[name] for name in forget),
            method=METHOD,
            config=asdict(config),
            seed=seed,
            steps=result.steps,
            data_digest=task.images.manifest_digest,
            code_version=code_version(),
            groups_kept=result.groups_kept,
            groups_total=result.groups_total,
        ),
    )
    data = task.data
    used = {"forget_train": len(data.forget), "retain_train": len(data.retain)}
    used |= {"earlier_train": len(data.earlier), "forget_val": len(data.val_forget)}
    used |= {"retain_val": len(data.val_retain)}
    return judged(task, adapter, used=used, seconds=result.seconds, gates=gates)


@dataclass(frozen=True)
class PreparedTask:
    """A task that is ready to learn an adapter.

    `images` is labelled by the rows of the backbone's head. `previous` is the model with `stack` in
    force, and `weights` the same without the stack's feature edits. The other fields are arguments
    of `run_task`.
    """

    backbone: Backbone
    stack: Sequence[AnyAdapter]
    images: ImageSet
    classes: TaskClasses
    subjects: Mapping[str, str]
    previous: nn.Module
    weights: nn.Module
    data: ForgetData


def prepared(
    backbone: Backbone,
    stack: Sequence[AnyAdapter],
    *,
    images: ImageSet,
    forget: Sequence[str],
    earlier: Sequence[str],
    withheld: Sequence[str],
    subjects: Mapping[str, str],
    stack_ids: Sequence[str],
    replay_per_class: int | None,
    generator: torch.Generator,
) -> PreparedTask:
    """Check the request, and draw the images.

    `replay_per_class`: None takes more images of each class if there are few classes. The other
    arguments and the errors are those of `run_task`.
    """
    images = for_classes(images, backbone.spec.classes)
    classes = _classes(images, forget=forget, earlier=earlier, withheld=withheld, subjects=subjects)
    if len(stack) != len(stack_ids):
        raise DataError(f"expected one id for each of {len(stack)} adapters, got {len(stack_ids)}")
    bare_head(backbone.model)  # raises if the report's attacks can't use it: before the training
    data = training_data(
        images,
        classes,
        samples=lambda rows: Samples(*to_tensors(images, rows, backbone.spec.preprocess)),
        replay_per_class=replay_per_class or max(REPLAY_PER_CLASS, REPLAY // len(classes.retained)),
        generator=generator,
    )
    previous = adapted_model(backbone, stack)
    weights = adapted_model(backbone, stack, edits=False)
    return PreparedTask(backbone, stack, images, classes, subjects, previous, weights, data)


def judged(
    task: PreparedTask,
    adapter: AnyAdapter,
    *,
    used: Mapping[str, int],
    seconds: float,
    gates: GateConfig | None,
    provisional: bool = False,
) -> TaskResult:
    """Measure an adapter on the held-out images, and judge it.

    `used` is the number of images by use that it was made from, and `seconds` how long that took.
    A `provisional` adapter is served until the weights have forgotten (`gates.judge`).
    """
    files = to_files(adapter)
    # Measure what will be served: the adapter read back from its files.
    shipped = from_files(files, task.backbone)
    stack = [*task.stack, shipped]
    after = adapted_model(task.backbone, stack)
    edited = any(one.erasure is not None for one in stack)
    weights = adapted_model(task.backbone, stack, edits=False) if edited else after
    report = measure_task(
        Models(task.backbone, task.previous, after, weights),
        adapter,
        images=task.images,
        classes=task.classes,
        subjects=task.subjects,
        cost=Cost(
            images=used,
            adapter_bytes=sum(len(content) for content in files.values()),
            seconds=seconds,
        ),
    )
    return TaskResult(
        adapter, files, report, judge(report, gates or GateConfig(), provisional=provisional)
    )


def _classes(
    images: ImageSet,
    *,
    forget: Sequence[str],
    earlier: Sequence[str],
    withheld: Sequence[str],
    subjects: Mapping[str, str],
) -> TaskClasses:
    gone = [*forget, *earlier, *withheld]
    if not forget:
        raise DataError("no class to forget was given")
    for name in gone:
        class_index(images, name)
    doubled = sorted({name for name in gone if gone.count(name) > 1})
    if doubled:
        raise DataError(f"already forgotten or given twice: {', '.join(doubled)}")
    unnamed = sorted({*forget, *earlier} - set(subjects))
    if unnamed:
        raise DataError(f"no subject id was given for {len(unnamed)} of the classes under erasure")
    learnt = _present(images, "train")
    for name in forget:
        if name not in learnt:
            raise DataError(
                f"class {name!r} has no images to learn from in {images.name}; give at least one "
                "in its train split"
            )
    known = learnt | _present(images, "val") | _present(images, "test")
    retained = tuple(name for name in images.classes if name in known and name not in gone)
    replayed = [name for name in retained if name in learnt]
    if len(retained) < 2 or not replayed:
        raise DataError(
            f"forgetting {', '.join(forget)} would leave {len(retained)} classes with images, "
            f"{len(replayed)} of them with training images; at least 2 must remain, and training "
            "images of at least 1"
        )
    missing = tuple(name for name in retained if name not in learnt)
    return TaskClasses(retained, tuple(forget), tuple(earlier), tuple(withheld), missing)


def _present(images: ImageSet, split: str) -> set[str]:
    """Names of the classes that have images in a split."""
    return {images.classes[label] for label in images.labels[indices(images, split)].tolist()}


def _throttled(
    progress: Callable[[Progress], None] | None, *, clock: Callable[[], float]
) -> Callable[[Progress], None] | None:
    """Pass on every change of phase, and other looks only at a readable pace."""
    if progress is None:
        return None
    last: tuple[str, float] = ("", 0.0)

    def told(look: Progress) -> None:
        nonlocal last
        now = clock()
        if look.phase != last[0] or now - last[1] >= _LEAST_PAUSE:
            last = (look.phase, now)
            progress(look)

    return told
