"""Compares the fold with a model that has the same rules in plain sets and lists.

The model follows the rules' wording only. Hypothesis proposes records, mostly plausible and
sometimes absurd. Both must accept the same records and come to the same state.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import pytest
from hypothesis import HealthCheck, find, given, settings
from hypothesis import strategies as st

from registry.errors import ConflictError
from registry.fold.rules import apply
from registry.fold.state import State
from registry.records.bodies import BODIES, Body, Compacted, Note, Refused, Requested, Trained
from registry.records.declarations import LegalHold, Restored, Retried, Sealed, Suspended, Tombstone
from registry.records.files import FileRef, adapter_id
from registry.records.releases import Activated, Canary, Confirmed, Published, RolledBack
from tests.unit.registry.registry_acts import BACKBONE, record_after, subject

REPORT = f"sha256:{'e' * 64}"


@dataclass
class ModelRelease:
    adapters: list[str]
    guard: set[str]
    parent: int
    activated: bool = False
    kind: str = "bare"
    returned: bool = False


@dataclass
class ModelJob:
    subjects: set[str]
    state: str = "requested"
    guarded: bool = False
    adapter: str | None = None
    restored: set[str] = field(default_factory=set)
    shareable: bool = False
    retries: int = 0

    @property
    def erasing(self) -> set[str]:
        return self.subjects - self.restored


@dataclass
class Model:
    jobs: dict[str, ModelJob] = field(default_factory=dict)
    adapters: dict[str, tuple[str, list[str], list[set[str]], bool, tuple[str, ...]]] = field(
        default_factory=dict
    )
    folds: dict[str, list[str]] = field(default_factory=dict)
    releases: list[ModelRelease] = field(
        default_factory=lambda: [ModelRelease([], set(), -1, activated=True)]
    )
    active: int = 0
    confirmed: int = 0
    held: set[str] = field(default_factory=set)
    gone: dict[str, set[str]] = field(default_factory=dict)
    suspended: bool = False
    sealed: bool = False
    canary: tuple[int, int] | None = None

    @property
    def erasing(self) -> set[str]:
        return {subject for job in self.jobs.values() for subject in job.erasing}

    @property
    def named(self) -> set[str]:
        return {subject for job in self.jobs.values() for subject in job.subjects}

    @property
    def erased(self) -> set[str]:
        return self.erased_by(self.serving)

    def erased_by(self, adapters: list[str]) -> set[str]:
        parts = (part for adapter in adapters for part in self.adapters[adapter][2])
        return {subject for part in parts for subject in part}

    def forgotten_by(self, adapters: list[str]) -> set[str]:
        """By the weights: what a provisional adapter erases isn't."""
        found: set[str] = set()
        for adapter in adapters:
            if adapter in self.folds:
                found |= self.forgotten_by(self.folds[adapter])
            elif not self.adapters[adapter][3]:
                found |= self.erased_by([adapter])
        return found

    def final(self, adapter: str | None) -> bool:
        """Whether the job's adapter is served for good, and not only until a better one."""
        return adapter in self.in_force and not self.adapters[adapter or ""][3]

    def below(self, job: str) -> list[str]:
        if self.serving and self.adapters[self.serving[-1]][::3] == (job, True):
            return self.serving[:-1]
        return self.serving

    @property
    def serving(self) -> list[str]:
        return self.releases[self.active].adapters

    @property
    def in_force(self) -> set[str]:
        return self.standing_for(self.serving)

    def standing_for(self, adapters: list[str]) -> set[str]:
        """The adapters, those that they were folded from, those that these were folded from, ..."""
        found: set[str] = set()
        new = set(adapters)
        while new:
            found |= new
            new = {below for adapter in new for below in self.folds.get(adapter, [])}
        return found

    def allows(self, body: Body) -> bool:
        if self.sealed and not isinstance(body, Tombstone | LegalHold | Note):
            return False
        match body:
            case Requested():
                return (
                    body.job not in self.jobs
                    and not self.erasing & set(body.subjects)
                    and not any("subject_map" in self.gone.get(s, ()) for s in body.subjects)
                )
            case Trained():
                return (
                    self.trainable(body.job, *body.others)
                    and set(body.subjects) == set().union(*self._erasing_of(body))
                    and all(adapter in self.adapters for adapter in body.stack)
                    and body.adapter not in body.stack
                    and self.adapters.get(body.adapter, self._made(body)) == self._made(body)
                )
            case Refused():
                return self.trainable(body.job, *body.others)
            case Retried():
                return self.trainable(body.job) and self.jobs[body.job].state == "refused"
            case Compacted():
                return (
                    all(adapter in self.adapters for adapter in body.folds)
                    and set(body.subjects) == self.erased_by(list(body.folds))
                    and body.adapter not in body.folds
                    and (
                        body.adapter not in self.adapters
                        or self.folds.get(body.adapter) == list(body.folds)
                    )
                )
            case Published(job=None):
                return (
                    self._definable(body.release, body.parent, body.guard)
                    and set(body.guard) == self.erasing | self.releases[self.active].guard
                    and len(body.adapters) == 1
                    and self.folds.get(body.adapters[0], []) == self.serving != []
                )
            case Published():
                job = self.jobs.get(body.job or "")
                if job is None or not self._definable(body.release, body.parent, body.guard):
                    return False
                if body.kind == "guard":
                    return list(body.adapters) == self.serving
                return (
                    job.state in ("trained", "published")
                    and job.adapter is not None
                    and self.adapters[job.adapter][1] == self.below(body.job or "")
                    and self._wanted(job.adapter)
                    and list(body.adapters) == [*self.below(body.job or ""), job.adapter]
                )
            case RolledBack():
                if body.to >= len(self.releases) or body.to == self.active:
                    return False
                target = self.releases[body.to]
                return (
                    target.activated
                    and list(body.adapters) == target.adapters
                    and set(body.guard) == self.erasing
                    and self._definable(body.release, body.parent, body.guard)
                )
            case Activated():
                if not self.active < body.release < len(self.releases):
                    return False
                release = self.releases[body.release]
                return (
                    release.parent == self.active
                    and release.guard >= self.erasing
                    and not release.returned
                )
            case Canary(percent=0):
                return self.canary is not None and self.canary[0] == body.release
            case Canary():
                if not self.active < body.release < len(self.releases):
                    return False
                release, active = self.releases[body.release], self.releases[self.active]
                return (
                    self.canary is None
                    and (release.kind, release.parent) == ("adapter", self.active)
                    and not release.returned
                    and release.guard >= self.erasing | active.guard
                    and self.erased_by(release.adapters) >= self.erased
                )
            case Confirmed():
                return (
                    self.confirmed < body.release < len(self.releases)
                    and self.releases[body.release].activated
                )
            case Restored():
                return self.erasing >= set(body.subjects)
            case Tombstone():
                return (
                    self.named >= set(body.subjects)
                    and not self.held & set(body.subjects)
                    and all(set(body.objects) - self.gone.get(s, set()) for s in body.subjects)
                    and ("subject_map" not in body.objects or self._unused(set(body.subjects)))
                )
            case LegalHold():
                subjects = set(body.subjects)
                if body.act == "placed":
                    return self.named >= subjects and not self.held & subjects
                return self.held >= subjects
            case Suspended():
                return self.suspended != (body.state == "suspended")
            case Sealed():
                return (
                    body.release == self.active == self.confirmed
                    and self.serving != []
                    and self.forgotten_by(self.serving) >= self.erasing
                    and body.backbone != BACKBONE
                )
        return True

    def trainable(self, *names: str) -> bool:
        jobs = [self.jobs.get(name) for name in names]
        return all(
            job is not None
            and job.state != "restored"
            and not self.final(job.adapter)
            and (job.shareable or len(jobs) == 1)
            for job in jobs
        ) and len({*names}) == len(names)

    def _erasing_of(self, body: Trained) -> list[set[str]]:
        return [self.jobs[name].erasing for name in (body.job, *body.others)]

    def _wanted(self, adapter: str) -> bool:
        """Whether every job that an adapter was trained for still needs exactly this adapter."""
        name, _, parts, _, others = self.adapters[adapter]
        jobs = [self.jobs[job] for job in (name, *others)]
        return [job.erasing for job in jobs] == parts and all(
            job.adapter == adapter and job.state in ("trained", "published") for job in jobs
        )

    def _made(self, body: Trained) -> tuple[str, list[str], list[set[str]], bool, tuple[str, ...]]:
        erasing = self._erasing_of(body)
        return body.job, list(body.stack), erasing, body.provisional, body.others

    def _unused(self, subjects: set[str]) -> bool:
        used = self.erasing | self.releases[self.active].guard | self.erased
        return self.sealed or not used & subjects

    def _definable(self, number: int, parent: int, guard: tuple[str, ...]) -> bool:
        masked = set(guard)
        return (
            number == len(self.releases)
            and parent == self.active
            and self.erasing <= masked <= self.erasing | self.releases[self.active].guard
        )

    def follow(self, body: Body) -> None:
        match body:
            case Requested():
                self.jobs[body.job] = ModelJob(set(body.subjects), shareable=body.batch)
                self.gone |= {name: set() for name in body.subjects if name in self.gone}
            case Trained():
                self.adapters[body.adapter] = self._made(body)
                for name in (body.job, *body.others):
                    self.jobs[name].state = "trained"
                    self.jobs[name].adapter = body.adapter
            case Compacted():
                self.adapters[body.adapter] = ("", [], [set(body.subjects)], False, ())
                self.folds[body.adapter] = list(body.folds)
            case Refused(others=()):
                self.jobs[body.job].state = "refused"
            case Refused():
                for name in (body.job, *body.others):
                    job = self.jobs[name]
                    job.state, job.adapter, job.shareable = "requested", None, False
            case Retried():
                job = self.jobs[body.job]
                job.state, job.retries = "requested", job.retries + 1
                if job.adapter not in self.in_force:
                    job.adapter = None
            case Published() | RolledBack():
                kind = body.kind if isinstance(body, Published) else "rollback"
                release = ModelRelease(list(body.adapters), set(body.guard), body.parent, kind=kind)
                self.releases.append(release)
                if isinstance(body, Published) and body.job and body.kind == "adapter":
                    name, *_, others = self.adapters[body.adapters[-1]]
                    for each in (name, *others):
                        self.jobs[each].state = "published"
            case Activated():
                self.active = body.release
                self.releases[body.release].activated = True
                self.canary = None
            case Canary():
                if body.percent == 0:
                    self.releases[body.release].returned = True
                self.canary = (body.release, body.percent) if body.percent else None
            case Confirmed():
                self.confirmed = body.release
                release = self.releases[body.release]
                for job in self.jobs.values():
                    if job.erasing and job.erasing <= release.guard:
                        job.guarded = True
                    served = self.standing_for(release.adapters)
                    kept = job.adapter in served and not self.adapters[job.adapter or ""][3]
                    if kept and job.state in ("trained", "published"):
                        job.state = "done"
            case Restored():
                for job in self.jobs.values():
                    gone = job.erasing & set(body.subjects)
                    job.restored |= gone
                    if gone and not job.erasing:
                        job.state = "restored"
            case Tombstone():
                for name in body.subjects:
                    self.gone.setdefault(name, set()).update(body.objects)
            case LegalHold():
                placed = body.act == "placed"
                self.held = (
                    (self.held | {*body.subjects}) if placed else self.held - {*body.subjects}
                )
            case Suspended():
                self.suspended = body.state == "suspended"
            case Sealed():
                self.sealed = True


def agree(state: State, model: Model) -> bool:
    jobs = {
        name: ModelJob(
            set(job.subjects),
            job.state,
            job.guarded,
            job.adapter,
            set(job.restored),
            job.batch and job.apart is None,
            len(job.retries),
        )
        for name, job in state.jobs.items()
    }
    releases = [
        (
            list(release.adapters),
            set(release.guard),
            release.number in (0, *activated(state)),
            release.returned is not None,
        )
        for release in state.releases.values()
    ]
    trial = state.trial
    return (
        jobs == model.jobs
        and releases == [(r.adapters, r.guard, r.activated, r.returned) for r in model.releases]
        and (trial and (trial.release, trial.percent)) == model.canary
        and list(state.releases) == list(range(len(model.releases)))
        and (state.active, state.confirmed, state.erasing)
        == (model.active, model.confirmed, model.erasing)
        and (state.subjects, state.held, state.deleted, state.suspended, state.seal is not None)
        == (model.named, model.held, model.gone, model.suspended, model.sealed)
        and set(state.unguarded)
        == {name for name, job in jobs.items() if not job.guarded and job.erasing}
        and state.active_release.guard >= set().union(*guarded_subjects(state), set())
    )


def activated(state: State) -> list[int]:
    return [number for number, r in state.releases.items() if r.activated_at is not None]


def guarded_subjects(state: State) -> list[set[str]]:
    return [set(job.erasing) for job in state.jobs.values() if job.guarded]


@st.composite
def proposals(draw: st.DrawFn, model: Model) -> Body:
    """The next record: mostly one that moves the work on, sometimes any, sometimes a wrong one.

    `twist` spoils one part of an otherwise plausible record.
    """
    number, parent = len(model.releases), model.active
    guard = tuple(sorted(model.erasing))
    twist = draw(st.integers(0, 7)) == 7
    if twist:
        guard = guard[1:] or (subject(99),)
        parent = draw(st.integers(0, number))
        number = draw(st.integers(1, number + 1))

    def request() -> Body:
        names = draw(st.lists(st.integers(0, 9), min_size=1, max_size=2, unique=True))
        job = f"job-{len(model.jobs) + (0 if twist else 1)}"
        batch = draw(st.booleans())
        return Requested(job, tuple(map(subject, names)), BACKBONE, None, batch)

    def others_of(job: str) -> tuple[str, ...]:
        """Jobs to train with this one, sometimes also jobs that may not be."""
        names = [n for n, other in model.jobs.items() if n != job and (other.shareable or twist)]
        few = st.lists(st.sampled_from(names), max_size=2, unique=True) if names else st.just([])
        return tuple(draw(few))

    def train(job: str) -> Body:
        files = {"adapter.bin": FileRef(f"sha256:{draw(st.integers(0, 15)):064x}", 1)}
        stack = () if twist else tuple(model.below(job))
        others = others_of(job)
        known = [model.jobs[name] for name in (job, *others) if name in model.jobs]
        erasing = sorted(set().union(*(each.erasing for each in known)))
        subjects = tuple(erasing) or (subject(0),)
        provisional = draw(st.integers(0, 3)) == 3
        return Trained(job, adapter_id(files), files, subjects, stack, REPORT, provisional, others)

    def refuse(job: str) -> Body:
        return Refused(job, "gates", "", None, others_of(job))

    def publish(job: str, kind: str) -> Body:
        own = model.jobs[job].adapter if job in model.jobs else None
        with_own = kind == "adapter" and own is not None and not twist
        adapters = (*model.below(job), own) if with_own else tuple(model.serving)
        return Published(number, kind, BACKBONE, adapters, guard, parent, job)  # type: ignore[arg-type]

    def compact() -> Body:
        known = sorted(model.adapters)
        folds = tuple(model.serving)
        if twist and known:
            folds = tuple(draw(st.lists(st.sampled_from(known), min_size=1, unique=True)))
        files = {"adapter.bin": FileRef(f"sha256:{draw(st.integers(16, 20)):064x}", 1)}
        erased = model.erased_by(list(folds))
        subjects = tuple(sorted(erased)) or (subject(0),)
        return Compacted(adapter_id(files), files, folds, subjects, REPORT)

    def publish_compaction() -> Body:
        adapters = tuple(a for a, folds in model.folds.items() if folds == model.serving)[:1]
        if not adapters or draw(st.integers(0, 7)) == 7:
            adapters = tuple(model.folds)[:1] or tuple(model.serving)
        full = guard if twist else tuple(sorted({*guard, *model.releases[model.active].guard}))
        return Published(number, "compaction", BACKBONE, adapters, full, parent, None)

    def roll_back() -> Body:
        to = draw(st.integers(0, len(model.releases) - 1))
        target = model.releases[to]
        full = guard if twist else tuple(sorted(model.erasing))
        return RolledBack(number, to, BACKBONE, tuple(target.adapters), full, parent)

    def activate() -> Body:
        return Activated(draw(st.integers(1, number)) if twist else max(1, number - 1))

    def try_out() -> Body:
        release = draw(st.integers(1, number)) if twist else max(1, number - 1)
        return Canary(release, draw(st.sampled_from((0, 10))), "")

    def confirm() -> Body:
        return Confirmed(draw(st.integers(1, number)) if twist else max(1, model.active), {}, 1.0)

    def declare() -> Body:
        names = draw(st.lists(st.integers(0, 9), min_size=1, max_size=2, unique=True))
        some = tuple(subject(name) for name in names)
        mine = tuple(sorted(model.erasing))[:1] or some
        objects = draw(st.sampled_from([("images",), ("subject_map",), ("images", "prototypes")]))
        return draw(
            st.sampled_from(
                [
                    Restored(mine),
                    Restored(some),
                    Tombstone(some, objects),
                    Tombstone(mine, objects),
                    Tombstone(tuple(sorted(model.named))[-1:] or some, objects),
                    LegalHold(some, draw(st.sampled_from(("placed", "lifted")))),
                    LegalHold(mine, "placed"),
                    Suspended(draw(st.sampled_from(("suspended", "resumed")))),
                ]
            )
        )

    def seal() -> Body:
        return Sealed(max(1, model.active), draw(st.sampled_from([BACKBONE, REPORT])))

    onward: list[Callable[[], Body]] = []
    if model.active > model.confirmed:
        onward.append(confirm)
    if len(model.releases) - 1 > model.active:
        onward += [activate, try_out]
    for name, job in model.jobs.items():
        if not job.guarded:
            onward.append(partial(publish, name, "guard"))
        if job.state in ("requested", "refused") or (job.adapter in model.serving):
            onward.append(partial(train, name))
        if job.state == "trained":
            onward.append(partial(publish, name, "adapter"))
        if job.state == "refused":
            onward.append(lambda name=name: Retried(name))
    if model.serving and model.serving in model.folds.values():
        onward += [publish_compaction] * 3
    elif len(model.serving) > 1:
        onward += [compact] * 2
    if onward and draw(st.integers(0, 9)) < 8:
        return draw(st.sampled_from(onward))()
    anyone = draw(st.sampled_from([*model.jobs, "job-99"]))
    act: Callable[[], Body] = draw(
        st.sampled_from(
            [
                request,
                roll_back,
                activate,
                try_out,
                confirm,
                declare,
                declare,
                seal,
                compact,
                publish_compaction,
                partial(train, anyone),
                partial(publish, anyone, "guard"),
                partial(publish, anyone, "adapter"),
                lambda: Note("a remark"),
                partial(refuse, anyone),
                lambda: Retried(anyone),
            ]
        )
    )
    return act()


@pytest.mark.parametrize("name", BODIES)
def test_every_type_of_record_is_proposed(name: str) -> None:
    find(proposals(Model()), lambda body: type(body) is BODIES[name])


@given(data=st.data())
@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_the_fold_agrees_with_the_model_on_every_record(data: st.DataObject) -> None:
    state, model = State(), Model()
    for step in range(data.draw(st.integers(10, 60), label="steps")):
        body = data.draw(proposals(model), label=f"record {step}")
        record = record_after(state, body)
        if model.allows(body):
            state = apply(state, record, digest=f"sha256:{record.seq:064x}")
            model.follow(body)
        else:
            try:
                apply(state, record, digest=REPORT)
            except ConflictError:
                pass
            else:
                raise AssertionError(f"the fold accepted what the rules forbid: {body}")
        assert agree(state, model)
