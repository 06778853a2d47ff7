"""The report of a forget task: what it did to held-out images. `gates` judges it.

Every accuracy is plain top-1 before any mask, on test images that are read only once. Classes under
erasure are named by their subject, and retained classes are not named at all.

A class counts as forgotten only by what the weights say. So the figures of classes under erasure
are there twice: `weights` with every feature edit taken out, `after` as served. They are the same
if nothing in the stack edits features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from forgetting.measure.accuracy import Share, drop, h_mean
from forgetting.report.leaks import Leaks


@dataclass(frozen=True)
class Report:
    """The figures of one task. "Before" is the bare backbone on the same images.

    Attributes:
        method: Name of the method.
        backbone: Fingerprint of the backbone.
        data_digest: Digest of the image set.
        seed: Seed of the run.
        acc_r_before: Retained classes, the bare backbone.
        acc_r_previous: Retained classes, with the stack below this task's adapter.
        acc_r_after: Retained classes, with this task's adapter.
        acc_r_weights: The same, with every feature edit taken out.
        sure_r_before: Retained images that the bare backbone names rightly, with a probability of
            at least one half.
        sure_r_previous: The same with the stack below this task's adapter.
        sure_r_after: The same with this task's adapter.
        margin_r_before: Retained images whose class wins by the head's margin (`margin_logits`),
            the bare backbone; None for a head without a margin.
        margin_r_after: The same, adapted.
        acc_m_before: Retained classes without training images, the bare backbone; None if there
            are none.
        acc_m_after: The same classes, adapted.
        acc_f_before: Classes of this task, the bare backbone.
        acc_f_weights: Classes of this task, adapted, with every feature edit taken out.
        acc_f_after: Classes of this task, adapted.
        acc_o_before: Classes of earlier tasks, the bare backbone; None if there are none.
        acc_o_weights: Like `acc_f_weights`, for classes of earlier tasks.
        acc_o_after: Classes of earlier tasks, adapted; None if there are none.
        near_before: Like `acc_r_before`, for the retained classes that the backbone confuses most
            with this task's.
        near_previous: Like `acc_r_previous`, for these classes.
        near_after: Like `acc_r_after`, for these classes.
        by_subject_weights: Accuracy by the weights alone, for each subject of this task and of
            earlier ones.
        by_subject: Accuracy after the task, for each subject of this task and of earlier ones.
        dump: Share of this task's images that go to the retained class that receives most.
        dump_before: The same share if the backbone's answers were only masked.
        ece_before: Expected calibration error on retained classes, the bare backbone.
        ece_after: The same, adapted.
        leak: Images under erasure that the adapted model names as the backbone does, of those that
            the backbone names confidently. No live target comes from this rate: that of leaks comes
            from `acc_f_after`, that of drift from `acc_r_before` and `acc_r_after`.
        emission: Retained images that get a name under erasure. Live emissions are only counted.
        leaks: What attacks win back of this task's classes from the weights alone; None if they
            were not run.
        leaks_served: The same from the model as served; None if it is the same model.
        groups_kept: Number of groups with an update.
        groups_total: Number of groups in the backbone.
        adapter_bytes: Size of the adapter's files.
        seconds: Time of the training.
        steps: Optimizer steps.
        images: Number of images by use: `forget_train`, `retain_train`, `forget_test`, ...
        unmeasured: Number of retained classes without any test image.
    """

    method: str
    backbone: str
    data_digest: str
    seed: int
    acc_r_before: Share
    acc_r_previous: Share
    acc_r_after: Share
    acc_r_weights: Share
    sure_r_before: Share
    sure_r_previous: Share
    sure_r_after: Share
    margin_r_before: Share | None
    margin_r_after: Share | None
    acc_m_before: Share | None
    acc_m_after: Share | None
    acc_f_before: Share
    acc_f_weights: Share
    acc_f_after: Share
    acc_o_before: Share | None
    acc_o_weights: Share | None
    acc_o_after: Share | None
    near_before: Share
    near_previous: Share
    near_after: Share
    by_subject_weights: Mapping[str, Share]
    by_subject: Mapping[str, Share]
    dump: Share
    dump_before: Share
    ece_before: float
    ece_after: float
    leak: Share
    emission: Share
    leaks: Leaks | None
    leaks_served: Leaks | None
    groups_kept: int
    groups_total: int
    adapter_bytes: int
    seconds: float
    steps: int
    images: Mapping[str, int]
    unmeasured: int

    @property
    def drop_f(self) -> float:
        """Acc_f(before) - Acc_f by the weights."""
        return drop(self.acc_f_before, self.acc_f_weights)

    @property
    def h(self) -> float:
        """2 * Acc_r * Drop / (Acc_r + Drop), by the weights."""
        return h_mean(self.acc_r_weights.value, self.drop_f)

    @property
    def worst_subject(self) -> tuple[str, Share]:
        """The class under erasure that the weights still recognise best, by its subject."""
        found = self.by_subject_weights
        name = max(sorted(found), key=lambda s: found[s].value)
        return name, found[name]
