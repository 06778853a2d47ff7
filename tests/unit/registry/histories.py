"""Short histories for tests of the fold: records by their bare essentials, and what they make."""

from registry.fold.rules import apply
from registry.fold.state import State
from registry.records.bodies import (
    Activated,
    Body,
    Confirmed,
    Published,
    Requested,
    RolledBack,
    Trained,
)
from registry.records.files import FileRef, adapter_id
from tests.unit.registry.registry_acts import BACKBONE, record_after, subject

S1, S2, S3 = (subject(number) for number in (1, 2, 3))
REPORT = f"sha256:{'e' * 64}"
OTHER_BACKBONE = f"sha256:{'c' * 64}"
UNKNOWN_ADAPTER = f"sha256:{'f' * 64}"


def then(state: State, *bodies: Body) -> State:
    """The state after `bodies`, with made-up digests."""
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
