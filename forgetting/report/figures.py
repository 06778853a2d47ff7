"""The report of a forget task: what it did to held-out images. `gates` judges it.

Every accuracy is plain top-1 before any mask, on test images that were read once. Classes under
erasure appear by subject only, retained classes not at all.
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
        backbone: Its fingerprint.
        data_digest: Of the image set.
        seed: Of the run.
        acc_r_before: Retained classes, the bare backbone.
        acc_r_previous: Retained classes, with the stack below this task's adapter.
        acc_r_after: Retained classes, with this task's adapter.
        acc_m_before: Those of the retained classes that had no image to learn from; None where
            every one had some.
        acc_m_after: The same, adapted.
        acc_f_before: Classes of this task, the bare backbone.
        acc_f_after: Classes of this task, adapted.
        acc_o_before: Classes forgotten earlier, the bare backbone; None where there are none.
        acc_o_after: Classes forgotten earlier, adapted; None where there are none.
        near_before: The retained classes that the backbone confuses most with this task's: as
            `acc_r_before`.
        near_previous: As `acc_r_previous`.
        near_after: As `acc_r_after`.
        by_subject: Accuracy after, for each subject of this task and of earlier ones.
        dump: Share of this task's images that go to the retained class that receives most.
        dump_before: The same, where the backbone's answers were merely masked.
        ece_before: Expected calibration error on retained classes, the bare backbone.
        ece_after: The same, adapted.
        leak: Of the images under erasure that the backbone names with confidence, those that the
            adapted model names the same: the live monitor's null rate against its shadow.
        emission: Of the retained images, those that are given a name under erasure: the null rate
            of that name in traffic.
        leaks: What attacks win back of this task's classes; None where they were not run.
        groups_kept: Groups with an update.
        groups_total: Groups of the backbone.
        adapter_bytes: Size of the adapter's files.
        seconds: Of training.
        steps: Of the optimizer.
        images: Number of images by use: `forget_train`, `retain_train`, `forget_test`, ...
        unmeasured: Number of retained classes without any test image: nothing is known of them.
    """

    method: str
    backbone: str
    data_digest: str
    seed: int
    acc_r_before: Share
    acc_r_previous: Share
    acc_r_after: Share
    acc_m_before: Share | None
    acc_m_after: Share | None
    acc_f_before: Share
    acc_f_after: Share
    acc_o_before: Share | None
    acc_o_after: Share | None
    near_before: Share
    near_previous: Share
    near_after: Share
    by_subject: Mapping[str, Share]
    dump: Share
    dump_before: Share
    ece_before: float
    ece_after: float
    leak: Share
    emission: Share
    leaks: Leaks | None
    groups_kept: int
    groups_total: int
    adapter_bytes: int
    seconds: float
    steps: int
    images: Mapping[str, int]
    unmeasured: int

    @property
    def drop_f(self) -> float:
        """Acc_f(before) - Acc_f(after)."""
        return drop(self.acc_f_before, self.acc_f_after)

    @property
    def h(self) -> float:
        """2 * Acc_r * Drop / (Acc_r + Drop)."""
        return h_mean(self.acc_r_after.value, self.drop_f)

    @property
    def worst_subject(self) -> tuple[str, Share]:
        """The class under erasure that is still recognised most."""
        name = max(sorted(self.by_subject), key=lambda s: self.by_subject[s].value)
        return name, self.by_subject[name]
