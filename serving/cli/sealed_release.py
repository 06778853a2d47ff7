"""The work of `lethe seal`: write the active release as a backbone on disk, and record that.

The backbone is written durably and read back before the record is written. So a registry is never
sealed into a backbone that isn't there, even after a power cut.
"""

from __future__ import annotations

import shutil
import uuid
from dataclasses import dataclass
from pathlib import Path

import torch

from forgetting.adapter.low_rank import from_files
from forgetting.models.backbone import load_backbone, save_backbone
from registry.errors import ConflictError
from registry.log.adapters import adapter_files
from registry.publish.declarations import record_seal
from registry.store.directory import open_store
from registry.subjects.subject_map import SubjectMap
from serving.cli.sealing import SealError, sealed_backbone
from serving.config.backbones import open_backbone
from serving.config.home import home_of, open_current_ledger, signer
from serving.config.settings import Settings
from serving.coordination.unserved import to_bring_back


@dataclass(frozen=True)
class SealedRelease:
    """What `lethe seal` made."""

    release: int
    backbone: str
    """Fingerprint of the new backbone."""
    classes: int
    """How many classes it knows."""
    left_out: int
    """How many classes are under erasure, and so left out."""
    edit_in_head: bool
    """The head took up a feature edit, so no embedding of this backbone may be handed out."""
    seq: int
    """Sequence number of the record."""


def seal_registry(settings: Settings, to: Path, *, actor: str, reason: str) -> SealedRelease:
    """Write the new backbone to `to` and record that the registry was sealed into it.

    Raises: `SealError`, `forgetting.errors.ForgettingError`, `RegistryError`, `HomeError`. After an
    error nothing is recorded and nothing is left in `to`.
    """
    torch.set_num_threads(settings.threads)
    home = home_of(settings)
    ledger = open_current_ledger(home, read_only=False)
    operator = signer(home, "operator")
    state = ledger.state
    if to.exists():
        raise SealError(f"{to} exists already: name a folder that doesn't")
    if to_bring_back(state):
        raise ConflictError("a restored class is not served again yet: wait for that, then seal")
    backbone = open_backbone(settings)
    if state.backbone not in (None, backbone.fingerprint):
        raise SealError(
            f"the registry belongs to the backbone {state.backbone}, the settings name "
            f"{backbone.fingerprint}"
        )
    subjects = SubjectMap(open_store(home.registry, read_only=True))
    forgotten = {subjects.class_of(subject) for subject in state.erasing}
    release = state.active_release
    stack = [from_files(adapter_files(ledger, id), backbone) for id in release.adapters]
    sealed = sealed_backbone(backbone, stack, without=forgotten)
    try:
        save_backbone(to, sealed)
        if load_backbone(to).fingerprint != sealed.fingerprint:
            raise SealError(f"{to} reads back as another backbone than was written")
        after = record_seal(
            ledger,
            operator,
            release=release.number,
            backbone=sealed.fingerprint,
            actor=actor,
            reason=reason,
            request_id=str(uuid.uuid4()),
        )
    except BaseException:
        if ledger.refresh().seal is None:
            shutil.rmtree(to, ignore_errors=True)
        raise
    return SealedRelease(
        release=release.number,
        backbone=sealed.fingerprint,
        classes=len(sealed.spec.classes),
        left_out=len(forgotten),
        edit_in_head=sealed.spec.edit_in_head,
        seq=after.seq,
    )
