"""Choose each method's setting once, on validation images of a seed that is not reported.

The candidates are the method's defaults and the changes in its grid. The best H after the first
task wins. The choice is kept in a file, so that every later run uses the same one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from forgetting.bench.claim import claim
from forgetting.bench.material import Material, forget_data
from forgetting.data.samples import ForgetData
from forgetting.durable_file import replace_file
from forgetting.errors import ForgettingError
from forgetting.measure.accuracy import h_mean, predict, right
from forgetting.methods import method
from forgetting.methods.protocol import Budget, Method, Task


@dataclass(frozen=True)
class Choice:
    """The choice, and every candidate's H on validation images (None if it broke down)."""

    chosen: Mapping[str, float]
    candidates: tuple[tuple[Mapping[str, float], float | None], ...]
    seed: int


def choose(
    kind: type[Method],
    material: Material,
    *,
    budget: Budget,
    work: Path,
    progress: Callable[[str, int, int], None] | None = None,
) -> Choice:
    """The kept choice, or a new one. If every candidate breaks down, the defaults are chosen.

    Args:
        kind: Class of the method. Its defaults are the first candidate.
        material: The material of the tuning seed.
        budget: The budget of the reported runs.
        work: Folder that keeps the choices.
        progress: Called before each candidate with the method's name, its number and how many.

    Raises:
        Claimed: Another process is choosing.
        DataError: A class to forget has no training images.
    """
    path = choice_file(kind, material, budget=budget, work=work)
    if (kept := _read(path)) is not None:
        return kept
    with claim(path):
        if (kept := _read(path)) is not None:
            return kept
        candidates: list[Mapping[str, float]] = [{}, *kind.grid]
        data = forget_data(material, 1)
        scores: list[float | None] = []
        for number, changes in enumerate(candidates):
            if progress is not None:
                progress(kind.name, number, len(candidates))
            scores.append(_score(method(kind.name, changes), material, data, budget=budget))
        working = [i for i, score in enumerate(scores) if score is not None]
        best = max(working, key=lambda i: (scores[i], -i), default=0)
        choice = Choice(
            dict(candidates[best]), tuple(zip(candidates, scores, strict=True)), material.seed
        )
        replace_file(path, json.dumps(asdict(choice), indent=1, default=dict).encode() + b"\n")
        return choice


def choice_file(kind: type[Method], material: Material, *, budget: Budget, work: Path) -> Path:
    """The file that keeps the choice. Its name has a digest of all that determines it."""
    facts = [
        kind.name,
        describe(kind()),
        [dict(changes) for changes in kind.grid],
        material.setting.name,
        material.seed,
        material.backbone.fingerprint,
        material.images.manifest_digest,
        asdict(budget),
    ]
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()
    name = f"{material.images.name}-{material.setting.name}-{kind.name}-{digest[:10]}.json"
    return work / "tuned" / name


def describe(made: Method) -> dict[str, Any]:
    """A method's hyper-parameters as JSON values."""
    facts: dict[str, Any] = asdict(made)  # type: ignore[call-overload]
    return facts


def _score(made: Method, material: Material, data: ForgetData, *, budget: Budget) -> float | None:
    """H on the validation images; None if the method broke down."""
    bare = material.backbone.model
    try:
        learned = made.learn(
            Task(original=bare, model=bare, data=data),
            budget=budget,
            generator=torch.Generator().manual_seed(material.seed),
        )
    except ForgettingError:
        return None
    acc_r = right(predict(learned.model, data.val_retain.x), data.val_retain.y)
    acc_f = right(predict(learned.model, data.val_forget.x), data.val_forget.y)
    before = right(predict(bare, data.val_forget.x), data.val_forget.y)
    return h_mean(acc_r.value, before.value - acc_f.value)


def _read(path: Path) -> Choice | None:
    try:
        raw = json.loads(path.read_text())
        candidates = tuple((dict(changes), score) for changes, score in raw["candidates"])
        return Choice(dict(raw["chosen"]), candidates, int(raw["seed"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
