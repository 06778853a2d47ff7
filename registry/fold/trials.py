"""The fold of a canary: a share of the requests is answered by a release that forgets more.

As `fold`: pure, and a record that breaks a rule is a `ConflictError`. A canary was defined on the
active release, for a job, and masks and erases all that this one does: nobody is exposed by it.
Whatever is activated ends it.
"""

from dataclasses import replace

from registry.errors import ConflictError
from registry.fold.state import State, Trial
from registry.records.record import Record
from registry.records.trials import Canary


def canary(state: State, record: Record, body: Canary) -> State:
    """A trial begins, or ends without the release having been activated."""
    if body.percent == 0:
        return _returned(state, body)
    release = state.releases.get(body.release)
    if release is None:
        raise ConflictError(f"there is no release {body.release}")
    if state.canary is not None:
        raise ConflictError(f"release {state.canary.release} is on trial already")
    if release.kind != "adapter" or release.parent != state.active or body.release <= state.active:
        raise ConflictError(
            f"release {body.release} was not defined for a job on the active release "
            f"{state.active}: publish it again"
        )
    if release.returned is not None:
        raise ConflictError(f"release {body.release} was on trial and was returned")
    erased = state.subjects_erased_by_weights
    exposed = (state.erasing | state.active_release.guard) - release.guard
    exposed |= erased(state.active) - erased(body.release)
    if exposed:
        raise ConflictError(
            f"release {body.release} forgets less than the active one: it would expose "
            f"{', '.join(sorted(exposed)[:5])}"
        )
    return replace(state, canary=Trial(body.release, body.percent, record.seq, record.at))


def _returned(state: State, body: Canary) -> State:
    if state.canary is None or state.canary.release != body.release:
        raise ConflictError(f"release {body.release} is not on trial")
    release = replace(state.releases[body.release], returned=body.detail)
    return replace(state, canary=None, releases=state.releases.with_entry(release.number, release))
