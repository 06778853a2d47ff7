"""Which step a release failed at on this replica, told by what was raised."""

from __future__ import annotations

from forgetting.errors import ForgettingError
from registry.errors import CheckError, NotFoundError, RegistryError, StoreError
from serving.coordination.release_state import ReleaseState, Stage
from serving.replica.slot import BuildError, SelfCheckError

LONGEST_PROBLEM = 400


def failed(release: int, error: Exception) -> ReleaseState:
    """What `error`, raised while `release` was made ready, says of it."""
    words = " ".join(f"{type(error).__name__}: {error}".split())
    stage = stage_of(error)
    return ReleaseState(release, stage, f"not {stage}: {words}"[:LONGEST_PROBLEM])


def stage_of(error: Exception) -> Stage:
    """The stage that was not reached."""
    match error:
        case StoreError() | NotFoundError() | OSError() | CheckError(check="presence"):
            return "fetched"
        case SelfCheckError():
            return "checked"
        case BuildError(__cause__=ForgettingError()) | RegistryError() | ForgettingError():
            return "verified"
    return "built"
