"""Saving a backbone survives a power cut after any system call."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from forgetting.data.preprocess import Preprocess
from forgetting.durable_file import new_folder, replace_file
from forgetting.errors import BackboneError
from forgetting.models.backbone import (
    SPEC_FILE,
    Backbone,
    BackboneSpec,
    build_model,
    freeze,
    load_backbone,
    save_backbone,
)
from tests.integration.registry.disk import Disk


def _backbone(seed: int) -> Backbone:
    arguments = {"img_size": 8, "patch_size": 4, "embed_dim": 12, "depth": 1, "num_heads": 2}
    preprocess = Preprocess(input_size=(1, 8, 8), mean=(0.5,), std=(0.5,))
    spec = BackboneSpec("vit_tiny_patch16_224", arguments, ("a", "b"), preprocess)
    torch.manual_seed(seed)
    return freeze(build_model(spec), spec)


def _saved(folder: Path, backbone: Backbone) -> None:
    save_backbone(folder / "above" / "vit", backbone)


def _renamed(folder: Path, backbone: Backbone) -> None:
    """Save as the benchmark keeps its backbones, beside a file of its own."""
    with new_folder(folder / "above" / "vit") as beside:
        save_backbone(beside, backbone)
        replace_file(beside / "trained.json", b"{}")


@pytest.mark.parametrize("save", [_saved, _renamed])
@pytest.mark.parametrize("kept", [0.0, 0.5, 1.0])
def test_a_power_cut_leaves_no_backbone_or_the_whole_one(
    tmp_path: Path, kept: float, save: Callable[[Path, Backbone], None]
) -> None:
    disk, backbone = _recorded(tmp_path / "disk", save)
    rng = random.Random(3)
    for cut in range(len(disk.calls) + 1):
        left = tmp_path / f"after-{cut}"
        disk.after_power_cut(cut, left, kept=kept, rng=rng)
        found = _found(left)
        assert found is not None or not (left / "above" / "vit" / SPEC_FILE).exists()
        assert found in (None, backbone.fingerprint)
    assert found == backbone.fingerprint


@pytest.mark.parametrize("save", [_saved, _renamed])
def test_the_disk_would_show_a_sync_that_is_left_out(
    tmp_path: Path, save: Callable[[Path, Backbone], None]
) -> None:
    disk, backbone = _recorded(tmp_path / "disk", save)
    whole = list(disk.calls)
    lost = set()
    for skipped, call in enumerate(whole):
        if call.name == "fsync":
            disk.calls = [*whole[:skipped], *whole[skipped + 1 :]]
            left = tmp_path / f"without-{skipped}"
            disk.after_power_cut(len(disk.calls), left, kept=0.0, rng=random.Random(0))
            if _found(left) != backbone.fingerprint:
                lost.add(Path(call.paths[0]).name)
    # At least those of both files and of the two folders above.
    assert len(lost) >= 4, lost


def _recorded(top: Path, save: Callable[[Path, Backbone], None]) -> tuple[Disk, Backbone]:
    top.mkdir()
    disk, backbone = Disk(top), _backbone(0)
    with disk.recording():
        save(top, backbone)
    assert _found(top) == backbone.fingerprint
    return disk, backbone


def _found(top: Path) -> str | None:
    """The fingerprint of the saved backbone; None if none can be loaded."""
    try:
        return load_backbone(top / "above" / "vit").fingerprint
    except BackboneError:
        return None
