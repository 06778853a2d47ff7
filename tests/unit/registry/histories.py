"""Short histories for tests of the fold: bodies of records, and the states that they lead to."""

from registry.fold.rules import apply
from registry.fold.state import State
from registry.records.bodies import Body, Compacted, Requested, Trained
from registry.records.files import FileRef, adapter_id
from registry.records.releases import Activated, Confirmed, Published, RolledBack
from tests.unit.registry.registry_acts import BACKBONE, record_after, subject

S1, S2, S3 = (subject(number) for number in (1, 2, 3))
REPORT = f"sha256:{'e' * 64}"
OTHER_BACKBONE = f"sha256:{'c' * 64}"
UNKNOWN_ADAPTER = f"sha256:{'f' * 64}"


def then(state: State, *bodies: Body) -> State:
    """The state after records with these bodies. Their digests are made up."""
    for body in bodies:
        state = apply(state, record_after(state, body), digest=f"sha256:{state.seq + 1:064x}")
    return state


def requested(job: str, *subjects: str, backbone: str = BACKBONE) -> Requested:
    return Requested(job=job, subjects=subjects, backbone=backbone)


def trained(job: str, *subjects: str, stack: tuple[str, ...] = (), content: str = "") -> Trained:
    digest = f"sha256:{(content or job).encode().hex():0>64}"
    files = {"adapter.bin": FileRef(digest, 10)}
    return Trained(job, adapter_id(files), files, subjects, stack, REPORT)


def published(
    release: int,
    kind: str,
    job: str,
    *guard: str,
    adapters: tuple[str, ...] = (),
    parent: int = 0,
    backbone: str = BACKBONE,
) -> Published:
    return Published(release, kind, backbone, adapters, tuple(sorted(guard)), parent, job)  # type: ignore[arg-type]


def rolled_back(
    release: int, to: int, *guard: str, adapters: tuple[str, ...] = (), parent: int = 0
) -> RolledBack:
    return RolledBack(release, to, BACKBONE, adapters, tuple(sorted(guard)), parent)


def confirmed(release: int) -> Confirmed:
    return Confirmed(release, {"replica-1": "confirmed"}, 12.5)


T1 = trained("job-1", S1)
A1 = T1.adapter
T2 = trained("job-2", S2, stack=(A1,))
A2 = T2.adapter

REQUESTED = then(State(), requested("job-1", S1))
GUARDED = then(REQUESTED, published(1, "guard", "job-1", S1), Activated(1), confirmed(1))
TRAINED = then(GUARDED, T1)
PUBLISHED = then(TRAINED, published(2, "adapter", "job-1", S1, adapters=(A1,), parent=1))
DONE = then(PUBLISHED, Activated(2), confirmed(2))
SECOND = then(DONE, requested("job-2", S2))

TWO = then(
    SECOND,
    T2,
    published(3, "adapter", "job-2", S1, S2, adapters=(A1, A2), parent=2),
    Activated(3),
    confirmed(3),
)


def compacted(*folds: str, subjects: tuple[str, ...] = (S1, S2), content: int = 1) -> Compacted:
    files = {"adapter.bin": FileRef(f"sha256:{content:064x}", 10)}
    return Compacted(adapter_id(files), files, folds, subjects, REPORT)


def compaction(
    release: int, adapter: str, *guard: str, parent: int, backbone: str = BACKBONE
) -> Published:
    guarded = tuple(sorted(guard))
    return Published(release, "compaction", backbone, (adapter,), guarded, parent, None)


C = compacted(A1, A2)
FOLDED = then(TWO, C)
SERVED = then(FOLDED, compaction(4, C.adapter, S1, S2, parent=3), Activated(4), confirmed(4))
