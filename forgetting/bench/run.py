"""The whole benchmark: compute every missing cell, in any number of processes at once."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from forgetting.bench.cell import (
    Cell,
    CellError,
    cell_file,
    read_cell,
    write_cell,
)
from forgetting.bench.claim import Claimed, claim
from forgetting.bench.material import Material, Origin, Which, prepare
from forgetting.bench.partial import partial_file
from forgetting.bench.protocol import ROWS, Attacks, Look, run_sequence
from forgetting.bench.setting import Setting
from forgetting.bench.tuning import Choice, choose, describe
from forgetting.data.image_set import ImageSet
from forgetting.errors import DataError
from forgetting.methods import method, method_class
from forgetting.methods.protocol import Budget, Method
from forgetting.training.pretrain import PretrainProgress

# Raise one of these when a figure changes its meaning. All cells are then computed again; with
# `_ATTACKS`, those that have figures of attacks.
_MEASURES = 5
_ATTACKS = 3
_POLL_S = 2.0

_Item = TypeVar("_Item")


@dataclass(frozen=True)
class BenchConfig:
    """What to run.

    Attributes:
        settings: The settings.
        methods: Names, in the order of the tables. `ROWS` are added to them.
        seeds: The seeds that are reported.
        origin: Source of the backbones, and the folder that keeps everything.
        budget: Budget of each task.
        references: After which tasks a reference is retrained.
        attacks: After which tasks the attacks are run.
        tune_seed: Choose each method's setting on this seed; None takes the defaults.
    """

    settings: tuple[Setting, ...]
    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    origin: Origin
    budget: Budget = Budget()
    references: Which = "all"
    attacks: Attacks = "last"
    tune_seed: int | None = None


@dataclass(frozen=True)
class Status:
    """The progress of a run.

    Attributes:
        done: Number of finished cells.
        cells: Number of all cells.
        what: The method and seed of the current cell, or what is trained or waited for.
        look: Progress of the cell; None while a backbone is trained.
        step: Step of the current work.
        steps: All steps of the current work.
    """

    done: int
    cells: int
    what: str
    look: Look | None
    step: int
    steps: int


@dataclass(frozen=True)
class Results:
    """All cells, ordered by setting, method and seed; their files; and the tuned settings."""

    cells: tuple[Cell, ...]
    files: tuple[Path, ...]
    choices: dict[tuple[str, str], Choice]
    backbone_accuracy: dict[tuple[str, int], float]


@dataclass(frozen=True)
class _Plan:
    setting: Setting
    seed: int
    method: str


def check(config: BenchConfig) -> None:
    """Refuse a configuration that can't be run, before anything is computed.

    Raises:
        DataError: A method or its variant is unknown, a method or seed is given twice, or the
            tuning seed is among the reported seeds.
    """
    for name in config.methods:
        method(name)
    for what, values in (("method", config.methods), ("seed", config.seeds)):
        doubled = [v for i, v in enumerate(values) if v in values[:i]]
        if doubled or not values:
            raise DataError(
                f"{what} {doubled[0]} was given twice" if doubled else f"no {what} was given"
            )
    if config.tune_seed in config.seeds:
        raise DataError(
            f"seed {config.tune_seed} can't be tuned on and reported; choose another --tune-seed"
        )


def run_bench(
    images: ImageSet,
    config: BenchConfig,
    *,
    status: Callable[[Status], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> Results:
    """Compute every missing cell, and return all cells.

    Cells on which another process works are left to it, and waited for at the end.

    Args:
        images: The whole image set.
        config: What to run.
        status: Called often, with the progress.
        note: Called with a sentence that a person should read: choices, failures, damaged files.

    Raises:
        DataError, BackboneError, TrainingError: See the functions that it calls. Finished cells are
            kept.
    """
    check(config)
    return _Bench(images, config, status=status, note=note).run()


class _Bench:
    """State of a run: the finished cells, and the material of the last setting and seed."""

    def __init__(
        self,
        images: ImageSet,
        config: BenchConfig,
        *,
        status: Callable[[Status], None] | None,
        note: Callable[[str], None] | None,
    ) -> None:
        self._images, self._config = images, config
        self._status, self._note = status, note
        self._code = code_digest()  # now, because the source may be edited while this runs
        self._material: Material | None = None
        self._cells: dict[_Plan, tuple[Cell, Path]] = {}
        self._choices: dict[tuple[str, str], Choice] = {}
        self._accuracy: dict[tuple[str, int], float] = {}
        rows = [*(r for r in ROWS if r != "retrained" or config.references != "none")]
        # Settings and seeds are the outer loops, so that all methods share a loaded backbone.
        self._plans = [
            _Plan(setting, seed, method)
            for setting in config.settings
            for seed in config.seeds
            for method in (*rows, *config.methods)
        ]

    def run(self) -> Results:
        self._until_done(
            [(s, name) for s in self._config.settings for name in self._config.methods], self._tune
        )
        self._until_done(self._plans, self._measure)
        order = sorted(self._plans, key=self._place)
        return Results(
            cells=tuple(self._cells[plan][0] for plan in order),
            files=tuple(self._cells[plan][1] for plan in order),
            choices=self._choices,
            backbone_accuracy=self._accuracy,
        )

    def _place(self, plan: _Plan) -> tuple[int, int, int]:
        names = [*ROWS, *self._config.methods]
        return (
            self._config.settings.index(plan.setting),
            names.index(plan.method),
            self._config.seeds.index(plan.seed),
        )

    def _until_done(self, items: Sequence[_Item], attempt: Callable[[_Item], None]) -> None:
        """Try again what another process holds, until all is done."""
        waiting = list(items)
        while waiting:
            held = []
            for item in waiting:
                try:
                    attempt(item)
                except Claimed:
                    held.append(item)
            if len(held) == len(waiting):
                self._tell(f"waiting for another process ({len(held)} to go)")
                time.sleep(_POLL_S)
            waiting = held

    def _measure(self, plan: _Plan) -> None:
        chosen = self._method(plan)
        material = self._prepared(plan.setting, plan.seed)
        facts = self._determined_by(plan, chosen, material)
        path = cell_file(
            self._config.origin.work,
            setting=f"{self._images.name}-{plan.setting.name}",
            method=plan.method,
            seed=plan.seed,
            determined_by=facts,
        )
        cell = self._kept(path)
        if cell is None:
            with claim(path):
                cell = self._kept(path) or self._compute(plan, chosen, material, facts, path)
        self._cells[plan] = (cell, path)
        what = f"{plan.method}, seed {plan.seed}"
        if cell.failed is not None:
            self._say(f"{what} ended early: {cell.failed} (to try again, delete {path.name})")
        self._tell(what)

    def _kept(self, path: Path) -> Cell | None:
        try:
            return read_cell(path)
        except FileNotFoundError:
            return None
        except CellError as error:
            self._say(f"a kept cell is damaged and is computed anew ({error})")
            return None

    def _compute(
        self,
        plan: _Plan,
        chosen: Method | str,
        material: Material,
        facts: dict[str, Any],
        path: Path,
    ) -> Cell:
        what = f"{plan.method}, seed {plan.seed}"
        partial = partial_file(path, code=self._code)
        outcome = run_sequence(
            chosen,
            material,
            budget=self._config.budget,
            attacks=self._config.attacks,
            progress=lambda look: self._tell(what, look=look),
            partial=partial,
        )
        cell = Cell(
            method=plan.method,
            seed=plan.seed,
            setting=plan.setting.name,
            tasks=outcome.tasks,
            failed=outcome.failed,
            determined_by=facts,
            code=self._code,
        )
        write_cell(path, cell, outcome.samples)
        for old in path.parent.glob(f"{path.stem}.*.partial"):
            old.unlink(missing_ok=True)
        return read_cell(path)

    def _method(self, plan: _Plan) -> Method | str:
        if plan.method in ROWS:
            return plan.method
        choice = self._choices.get((plan.setting.name, plan.method))
        return method(plan.method, choice.chosen if choice is not None else None)

    def _tune(self, item: tuple[Setting, str]) -> None:
        setting, name = item
        kind, seed = method_class(name), self._config.tune_seed
        if seed is None or not kind.grid or ":" in name:  # a variant is what its name says
            return
        choice = choose(
            kind,
            self._prepared(setting, seed, references="none"),
            budget=self._config.budget,
            work=self._config.origin.work,
            progress=lambda name, i, n: self._tell(f"tuning {name}", step=i, steps=n),
        )
        if choice.chosen:
            chosen = ", ".join(f"{k} {v}" for k, v in choice.chosen.items())
        else:
            chosen = "its defaults"
        self._say(f"{kind.name} in {setting.name}: {chosen}, of {len(choice.candidates)} settings")
        self._choices[(setting.name, name)] = choice

    def _prepared(self, setting: Setting, seed: int, references: Which | None = None) -> Material:
        wanted = references or self._config.references
        kept = self._material
        if kept is not None and (kept.setting, kept.seed) == (setting, seed):
            return kept
        material = prepare(
            self._images,
            setting,
            seed=seed,
            origin=self._config.origin,
            references=wanted,
            progress=self._training,
            note=self._note,
        )
        if material.facts is not None and seed in self._config.seeds:
            self._accuracy[(setting.name, seed)] = material.facts.test_accuracy
        self._material = material
        return material

    def _determined_by(
        self, plan: _Plan, chosen: Method | str, material: Material
    ) -> dict[str, Any]:
        references = {
            str(number): backbone.fingerprint
            for number, (backbone, _) in material.references.items()
        }
        return {
            "measures": _MEASURES,
            "method": plan.method if isinstance(chosen, str) else describe(chosen),
            "setting": asdict(plan.setting),
            "tasks": [task.forget for task in material.tasks],
            "seed": plan.seed,
            "images": material.images.manifest_digest,
            "backbone": material.backbone.fingerprint,
            "references": references,
            "budget": None if isinstance(chosen, str) else asdict(self._config.budget),
            "attacks": self._config.attacks,
            "attack_measures": None if self._config.attacks == "none" else _ATTACKS,
        }

    def _training(self, what: str, look: PretrainProgress) -> None:
        self._tell(what, step=look.step, steps=look.steps)

    def _tell(self, what: str, *, look: Look | None = None, step: int = 0, steps: int = 0) -> None:
        if self._status is None:
            return
        step, steps = (look.step, look.steps) if look is not None else (step, steps)
        self._status(Status(len(self._cells), len(self._plans), what, look, step, steps))

    def _say(self, sentence: str) -> None:
        if self._note is not None:
            self._note(sentence)


def code_digest() -> str:
    """Digest of this package's source. A table says if its cells come from different code."""
    root = Path(__file__).resolve().parent.parent
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        if path.parent.name != "bench" or path.name in _MEASURING:
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()[:12]


# The modules in this folder that decide the figures. Tables and plots may change freely.
_MEASURING = (
    "protocol.py", "figures.py", "leaks.py", "material.py", "setting.py", "cell.py", "partial.py"
)  # fmt: skip
