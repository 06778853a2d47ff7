"""Makes releases of the signed ledger ready to serve: verified adapters and class indices."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping

from torch import Tensor

from forgetting.adapter.low_rank import Adapter, AnyAdapter, from_files
from forgetting.adapter.stack import EffectiveState, effective_state
from forgetting.errors import AdapterError, ForgettingError
from forgetting.models.backbone import Backbone
from forgetting.models.golden import TOLERANCE, golden_error, golden_figures
from registry.errors import (
    CheckError,
    IntegrityError,
    NotFoundError,
    RegistryError,
    StoreError,
)
from registry.fold.state import Release, Trial
from registry.log.adapters import adapter_files
from registry.log.figures import report_figures
from registry.log.ledger import Ledger
from registry.schema import Json
from registry.subjects.subject_map import SubjectMap
from serving.coordination.messages import ReleaseState, Stage
from serving.monitoring.tally import stack_name
from serving.replica.slot import BuildError, Measured, ReadyRelease, SelfCheckError, Slot

log = logging.getLogger(__name__)

LONGEST_PROBLEM = 400


class ReleaseReader:
    """Reads releases for one backbone. Adapters and subjects are read and verified once."""

    def __init__(
        self,
        ledger: Ledger,
        subjects: SubjectMap,
        backbone: Backbone,
        *,
        tolerance: float = TOLERANCE,
    ) -> None:
        """`tolerance`: how far the golden figures may be from those in the report."""
        self._tolerance = tolerance
        self._ledger = ledger
        self._subjects = subjects
        self._backbone = backbone
        self._adapters: dict[str, AnyAdapter] = {}
        self._measured: dict[str, Measured] = {}
        self._indices: dict[str, int] = {}
        self._index_of = {name: index for index, name in enumerate(backbone.spec.classes)}

    def active(self) -> int:
        """The number of the active release, as the ledger says it now."""
        return self._ledger.refresh().active

    def check_defined(self, number: int) -> None:
        """Raises `NotFoundError` unless the ledger defines release `number`."""
        if (
            number not in self._ledger.state.releases
            and number not in self._ledger.refresh().releases
        ):
            last = self._ledger.state.last_release
            raise NotFoundError(f"there is no release {number}; there are 0 to {last}")

    @property
    def suspended(self) -> bool:
        """Whether serving is suspended, as of the last `Ledger.refresh`."""
        return self._ledger.state.suspended

    @property
    def trial(self) -> Trial | None:
        """The trial that is on, as of the last `Ledger.refresh`."""
        return self._ledger.state.trial

    @property
    def seq(self) -> int:
        """Sequence number of the newest record that was read and accepted."""
        return self._ledger.state.seq

    def ready(self, number: int, slot: Slot) -> ReadyRelease:
        """Build release `number` in `slot`, on the side. The slot must check with the golden image.

        Raises `RegistryError` when a record or file fails its checks, `BuildError` when the
        release is for another backbone or its adapters don't fit.
        """
        state = self._ledger.state
        if number not in state.releases:
            state = self._ledger.refresh()
        if number not in state.releases:
            raise IntegrityError(
                f"release {number} is not in the ledger", check="sequence", where="log"
            )
        release = state.releases[number]
        if state.backbone not in (None, self._backbone.fingerprint):
            raise BuildError(
                f"release {number} is for backbone {state.backbone}, "
                f"this replica has {self._backbone.fingerprint}"
            )
        forward = slot.forward_for(
            release.adapters,
            lambda: self._state(release),
            lambda logits: self._check(release, logits),
        )
        erased = state.subjects_erased_by_weights(number)
        return ReadyRelease(
            number=number,
            parent=release.parent or 0,
            forward=forward,
            guard=frozenset(self._index(subject) for subject in release.guard),
            erased=frozenset(self._index(subject) for subject in erased),
            groups=self._groups(release),
            stack=stack_name(release.adapters),
            measured=self._measured_by(release),
        )

    def _adapter(self, adapter_id: str) -> AnyAdapter:
        if adapter_id not in self._adapters:
            files = adapter_files(self._ledger, adapter_id)
            try:
                self._adapters[adapter_id] = from_files(files, self._backbone)
            except AdapterError as error:
                raise BuildError(f"adapter {adapter_id}: {error}") from error
        return self._adapters[adapter_id]

    def _state(self, release: Release) -> EffectiveState:
        adapters = [self._adapter(adapter_id) for adapter_id in release.adapters]
        return effective_state(self._backbone.model, adapters)

    def _check(self, release: Release, logits: Tensor) -> None:
        """Compare the golden figures with those that the report of the top adapter holds.

        Does nothing if that adapter was measured on another stack, or its report has no figures.
        Raises `SelfCheckError`.
        """
        if not release.adapters:
            return
        *below, top = release.adapters
        if self._adapter(top).facts.stack != tuple(below):
            return
        expected = self._golden(top)
        if expected is None:
            return
        error = golden_error(golden_figures(logits), expected)
        if not error <= self._tolerance:
            raise SelfCheckError(
                f"on the golden image, release {release.number} is off by "
                f"{error:.2g} from what the report of adapter {top} says; at most "
                f"{self._tolerance:g} is allowed"
            )

    def _golden(self, adapter_id: str) -> list[float] | None:
        """The report's golden figures; None if it has none or can't be read."""
        try:
            report = json.loads(
                self._ledger.get_blob(self._ledger.state.adapters[adapter_id].report)
            )
        except (RegistryError, ValueError) as error:
            log.warning("the report of adapter %s can't be read: %s", adapter_id, error)
            return None
        match report:
            case {"golden": [*figures]} if all(isinstance(f, int | float) for f in figures):
                return figures
        return None

    def _groups(self, release: Release) -> int:
        adapters = [self._adapter(adapter_id) for adapter_id in release.adapters]
        paths = {p for adapter in adapters if isinstance(adapter, Adapter) for p in adapter.pairs}
        return len({path.split(".mlp.")[0] for path in paths})

    def _measured_by(self, release: Release) -> Measured:
        reports = [self._report(adapter_id) for adapter_id in release.adapters]
        leak = max((report.leak for report in reports), default=0.0)
        # The top adapter's report measured retained classes with the whole stack.
        return Measured(leak, reports[-1].drift if reports else 0.0)

    def _report(self, adapter_id: str) -> Measured:
        """What the report measured; zeros if it is gone or can't be read.

        Serving doesn't depend on it: it only raises the targets of evidence.
        """
        if adapter_id not in self._measured:
            try:
                digest = self._ledger.state.adapters[adapter_id].report
                figures = report_figures(self._ledger, digest)
            except RegistryError as error:
                log.warning("the report of adapter %s can't be read: %s", adapter_id, error)
                figures = {}
            before, after = _share(figures, "acc_r_before"), _share(figures, "acc_r_after")
            self._measured[adapter_id] = Measured(
                leak=_share(figures, "acc_f_after"), drift=max(before - after, 0.0)
            )
        return self._measured[adapter_id]

    def _index(self, subject: str) -> int:
        if subject not in self._indices:
            name = self._subjects.class_of(subject)
            if name not in self._index_of:
                raise BuildError(f"subject {subject} names a class that this backbone lacks")
            self._indices[subject] = self._index_of[name]
        return self._indices[subject]


def _share(figures: Mapping[str, Json], name: str) -> float:
    match figures.get(name):
        case {"value": int() | float() as value}:
            return float(value)
    return 0.0


def failed(release: int, error: Exception) -> ReleaseState:
    """The state of `release` after `error` was raised while it was made ready."""
    words = " ".join(f"{type(error).__name__}: {error}".split())
    stage = stage_of(error)
    return ReleaseState(release, stage, f"not {stage}: {words}"[:LONGEST_PROBLEM])


def stage_of(error: Exception) -> Stage:
    """The stage at which a release failed with `error`."""
    match error:
        case StoreError() | NotFoundError() | OSError() | CheckError(check="presence"):
            return "fetched"
        case SelfCheckError():
            return "checked"
        case BuildError(__cause__=ForgettingError()) | RegistryError() | ForgettingError():
            return "verified"
    return "built"
