"""Real runs on digits with a very small backbone are kept, resumed, shared and repaired."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from forgetting.bench.backbones import backbone_folder, trained_backbone
from forgetting.bench.cell import samples_file
from forgetting.bench.material import Origin, forget_data, prepare
from forgetting.bench.recipes import Recipe
from forgetting.bench.results import write_results
from forgetting.bench.run import BenchConfig, Results, Status, run_bench
from forgetting.bench.setting import parse_settings
from forgetting.data.image_set import ImageSet
from forgetting.errors import BackboneError, DataError
from forgetting.methods.protocol import Budget
from forgetting.models.backbone import freeze, load_backbone, save_backbone
from forgetting.training.pretrain import PretrainConfig

TINY = Recipe(
    PretrainConfig(steps=40, batch=32, peak_rate=3e-3),
    model_args={"embed_dim": 16, "depth": 2, "num_heads": 2},
)


def tiny_config(work: Path) -> BenchConfig:
    return BenchConfig(
        settings=parse_settings("2x2", available=10),
        methods=("head_mask", "l2"),
        seeds=(0,),
        origin=Origin(work, TINY),
        budget=Budget(steps=3, batch=16),
        references="last",
        attacks="none",
    )


@pytest.fixture
def config(tmp_path: Path) -> BenchConfig:
    return tiny_config(tmp_path / "work")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, digit_images: ImageSet) -> Path:
    """A work folder in which everything is finished."""
    work = tmp_path_factory.mktemp("shared")
    run_bench(digit_images, tiny_config(work))
    return work


@pytest.fixture(scope="module")
def results(shared: Path, digit_images: ImageSet) -> Results:
    return run_bench(digit_images, tiny_config(shared))


def test_every_row_has_a_cell_with_every_task(results: Results) -> None:
    assert [c.method for c in results.cells] == ["backbone", "retrained", "head_mask", "l2"]
    for cell in results.cells:
        assert cell.failed is None
        numbers = [task.number for task in cell.tasks]
        assert numbers == ([2] if cell.method == "retrained" else [1, 2])


def test_figures_agree_with_the_kept_answers(results: Results) -> None:
    for cell, path in zip(results.cells, results.files, strict=True):
        samples = json.loads(gzip.decompress(samples_file(path).read_bytes()))
        for task, answers in zip(cell.tasks, samples, strict=True):
            for share, role in ((task.acc_r, "retained_test"), (task.acc_f, "forget_test")):
                columns = answers[role]
                pairs = list(zip(columns["label"], columns["answer"], strict=True))
                assert share.n == len(pairs)
                assert share.hits == sum(label == answer for label, answer in pairs)
            named = {answers["classes"][label] for label in answers["forget_test"]["label"]}
            assert named == set(answers["forget"])


def test_rows_are_what_they_must_be(results: Results) -> None:
    cells = {cell.method: cell for cell in results.cells}
    bare, never = cells["backbone"].tasks[1], cells["retrained"].tasks[0]
    mask = cells["head_mask"].tasks[1]
    assert bare.acc_f == bare.acc_f_before
    assert (bare.h, bare.stored, bare.steps) == (0.0, 0, 0)
    assert never.js == 0.0
    assert mask.acc_f.hits == 0
    assert mask.acc_o is not None
    assert mask.acc_o.hits == 0
    assert mask.acc_r.hits >= mask.acc_r_before.hits
    assert mask.update_norms is not None
    assert max(mask.update_norms) == 0.0
    assert cells["l2"].tasks[0].js is None  # there is a reference after the last task only
    assert cells["l2"].tasks[1].js is not None
    assert 0 < cells["l2"].tasks[1].js < 1
    assert cells["l2"].tasks[0].stored_bytes == 4 * cells["l2"].tasks[0].stored


def test_second_run_computes_nothing(
    shared: Path, results: Results, digit_images: ImageSet
) -> None:
    before = {path: path.stat().st_mtime_ns for path in results.files}
    again = run_bench(digit_images, tiny_config(shared))
    assert again.cells == results.cells
    assert {path: path.stat().st_mtime_ns for path in again.files} == before


def test_other_budget_or_attacks_make_other_cells(
    shared: Path, results: Results, digit_images: ImageSet
) -> None:
    config = replace(tiny_config(shared), budget=Budget(steps=2, batch=16))
    other = run_bench(digit_images, config)
    names = [path.name for path in other.files]
    kept = [path.name for path in results.files]
    assert names[:2] == kept[:2]  # the rows have no budget
    assert not set(names[2:]) & set(kept[2:])


def test_damaged_cell_is_computed_anew_with_a_note(
    shared: Path, results: Results, digit_images: ImageSet
) -> None:
    path = results.files[2]
    content = path.read_bytes()
    path.write_bytes(content[:100])
    notes: list[str] = []
    again = run_bench(digit_images, tiny_config(shared), note=notes.append)
    path.write_bytes(content)
    assert [note for note in notes if path.name in note and "computed anew" in note]
    assert [t.acc_r for t in again.cells[2].tasks] == [t.acc_r for t in results.cells[2].tasks]


def test_damaged_backbone_is_trained_anew_with_a_note(
    tmp_path: Path, digit_images: ImageSet
) -> None:
    recipe = replace(TINY, config=replace(TINY.config, steps=2))
    first, _ = trained_backbone(tmp_path, digit_images, recipe=recipe, seed=1)
    folder = backbone_folder(tmp_path, digit_images, recipe=recipe, seed=1)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    notes: list[str] = []
    again, _ = trained_backbone(tmp_path, digit_images, recipe=recipe, seed=1, note=notes.append)
    assert again.fingerprint == first.fingerprint
    assert len(notes) == 1
    assert trained_backbone(tmp_path, digit_images, recipe=recipe, seed=1)[0].fingerprint


def test_reference_starts_from_the_backbones_first_weights(
    tmp_path: Path, digit_images: ImageSet
) -> None:
    still = replace(TINY, config=replace(TINY.config, steps=1, peak_rate=1e-12))
    bare, _ = trained_backbone(tmp_path, digit_images, recipe=still, seed=2)
    never, _ = trained_backbone(tmp_path, digit_images, recipe=still, seed=2, without=["3"])
    assert bare.spec.classes == never.spec.classes
    for a, b in zip(bare.model.parameters(), never.model.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


KILLED = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[2])
from test_run import tiny_config
from forgetting.bench.run import run_bench
from forgetting.data.sources import digits

def status(look):
    if look.done == 2:
        os.kill(os.getpid(), signal.SIGKILL)

run_bench(digits(), tiny_config(Path(sys.argv[1])), status=status)
"""


def test_run_that_was_killed_between_two_cells_goes_on(
    tmp_path: Path, shared: Path, digit_images: ImageSet, results: Results
) -> None:
    shutil.copytree(shared / "backbones", tmp_path / "backbones")
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path), str(Path(__file__).parent)], check=False
    )
    assert ended.returncode == -signal.SIGKILL
    done = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("cells/*/*.json")}
    assert len(done) == 2
    again = run_bench(digit_images, tiny_config(tmp_path))
    assert {p: p.stat().st_mtime_ns for p in done} == done
    assert [p.name for p in again.files] == [p.name for p in results.files]
    for resumed, whole in zip(again.cells, results.cells, strict=True):
        assert [(t.acc_r, t.acc_f) for t in resumed.tasks] == [
            (t.acc_r, t.acc_f) for t in whole.tasks
        ]


def test_stopped_cell_goes_on_after_its_last_finished_task(
    config: BenchConfig, digit_images: ImageSet
) -> None:
    config = replace(config, methods=("ewc",))  # it carries something to its next task

    def stop(look: Status) -> None:
        if look.what.startswith("ewc") and look.look is not None and look.look.number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_bench(digit_images, config, status=stop)
    (kept,) = (config.origin.work / "cells").rglob("*.partial")
    tasks: set[int] = set()

    def seen(look: Status) -> None:
        if look.what.startswith("ewc") and look.look is not None:
            tasks.add(look.look.number)

    resumed = run_bench(digit_images, config, status=seen)
    assert tasks == {2}
    assert not kept.exists()
    shutil.rmtree(config.origin.work / "cells")
    at_once = run_bench(digit_images, config)
    assert _without_times(resumed) == _without_times(at_once)


def _without_times(results: Results) -> list[object]:
    return [
        (cell.method, [replace(task, cpu_seconds=0.0) for task in cell.tasks])
        for cell in results.cells
    ]


def test_cell_of_another_process_is_waited_for(
    shared: Path, results: Results, digit_images: ImageSet
) -> None:
    """Another process holds the claim of an absent cell."""
    path = results.files[3]
    content = path.read_bytes()
    path.unlink()
    waiting: list[str] = []
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sys, time; from pathlib import Path\n"
            "from forgetting.bench.claim import claim\n"
            "with claim(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)",
            str(path),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    holder.stdout.readline()

    def status(look: Status) -> None:
        if "waiting" in look.what:
            waiting.append(look.what)
            path.write_bytes(content)  # the other one finishes
            os.kill(holder.pid, signal.SIGKILL)
            holder.wait()

    again = run_bench(digit_images, tiny_config(shared), status=status)
    holder.stdout.close()
    assert waiting == ["waiting for another process (1 to go)"]
    assert path.read_bytes() == content
    assert again.cells[3] == results.cells[3]


def test_few_shots_and_missing_classes_shape_the_task(shared: Path, digit_images: ImageSet) -> None:
    (setting,) = parse_settings("2x2", available=10, shots=3, missing=2)
    material = prepare(
        digit_images, setting, seed=0, origin=Origin(shared, TINY), references="none"
    )
    data = forget_data(material, 2)
    task = material.tasks[1]
    labels = {name: material.images.classes.index(name) for name in material.images.classes}
    assert data.forget.y.bincount().max() == 3
    assert len(data.earlier) == 6
    assert set(data.retain.y.tolist()) == {
        labels[name] for name in task.retained if name not in task.missing
    }
    assert set(data.forgotten.tolist()) == {labels[n] for n in (*task.forget, *task.earlier)}
    again = forget_data(material, 2)
    assert torch.equal(again.retain.x, data.retain.x)


def test_subset_of_classes_leaves_strangers(shared: Path, digit_images: ImageSet) -> None:
    (setting,) = parse_settings("2x2", available=10, classes=7)
    recipe = replace(TINY, config=replace(TINY.config, steps=2))
    material = prepare(
        digit_images, setting, seed=0, origin=Origin(shared, recipe), references="none"
    )
    assert len(material.images.classes) == 7
    strangers = set(digit_images.classes) - set(material.images.classes)
    numbers = {digit_images.classes.index(name) for name in strangers}
    assert set(material.strangers.y.tolist()) == numbers


def test_tuning_chooses_on_a_seed_that_is_not_reported_once(
    config: BenchConfig, digit_images: ImageSet
) -> None:
    tuned = replace(config, methods=("l2",), references="none", tune_seed=7)
    notes: list[str] = []
    results = run_bench(digit_images, tuned, note=notes.append)
    (choice,) = results.choices.values()
    assert choice.seed == 7
    assert choice.candidates[0][0] == {}
    best = max(score for _, score in choice.candidates if score is not None)
    assert dict(choice.chosen) in [c for c, score in choice.candidates if score == best]
    assert len(notes) == 1
    assert notes[0].startswith("l2 in 10-2x2: ")
    (file,) = (config.origin.work / "tuned").iterdir()
    before = file.stat().st_mtime_ns
    assert run_bench(digit_images, tuned).choices == results.choices
    assert file.stat().st_mtime_ns == before


def test_method_that_breaks_down_leaves_a_cell_and_the_run_goes_on(
    tmp_path: Path, shared: Path, config: BenchConfig, digit_images: ImageSet
) -> None:
    """A backbone that gives every class the same probability has nothing to forget."""
    kept = (p for p in (shared / "backbones").iterdir() if "without" not in p.name)
    bare = next(b for b in map(load_backbone, kept) if b.spec.classes == digit_images.classes)
    with torch.no_grad():
        for parameter in bare.model.get_classifier().parameters():  # type: ignore[operator]
            parameter.zero_()
    save_backbone(tmp_path / "blank", freeze(bare.model, bare.spec))
    blank = replace(
        config,
        methods=("lethe", "head_mask"),
        origin=replace(config.origin, given=tmp_path / "blank"),
        references="none",
    )
    for _ in range(2):  # a kept cell reports it again
        notes: list[str] = []
        results = run_bench(digit_images, blank, note=notes.append)
        failed = {cell.method: cell.failed for cell in results.cells}
        assert failed["head_mask"] is None
        assert failed["lethe"] is not None
        assert "nothing to forget" in failed["lethe"]
        (note,) = notes
        assert note.startswith("lethe, seed 0 ended early: task 1: ")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: replace(c, methods=("head_mask", "nonesuch")), "no method 'nonesuch'"),
        (lambda c: replace(c, methods=("l2", "l2")), "method l2 was given twice"),
        (lambda c: replace(c, methods=()), "no method was given"),
        (lambda c: replace(c, seeds=(0, 0)), "seed 0 was given twice"),
        (lambda c: replace(c, tune_seed=0), "can't be tuned on and reported"),
    ],
)
def test_impossible_run_is_refused_before_anything_is_computed(
    config: BenchConfig,
    digit_images: ImageSet,
    change: Callable[[BenchConfig], BenchConfig],
    message: str,
) -> None:
    with pytest.raises(DataError, match=message):
        run_bench(digit_images, change(config))
    assert not config.origin.work.exists()


def test_given_backbone_is_used_and_a_foreign_one_refused(
    shared: Path, tmp_path: Path, config: BenchConfig, results: Results, digit_images: ImageSet
) -> None:
    (folder,) = [
        p for p in (shared / "backbones").glob("digits-10-seed0-*") if "without" not in p.name
    ]
    given = replace(
        config,
        methods=("head_mask",),
        origin=replace(config.origin, given=folder),
        references="none",
    )
    found = run_bench(digit_images, given)
    assert found.cells[0].tasks[0].acc_r == results.cells[0].tasks[0].acc_r
    assert not (config.origin.work / "backbones").exists()
    few = replace(given, settings=parse_settings("2x2", available=10, classes=8))
    with pytest.raises(BackboneError, match="has 10 classes and digits has 8"):
        run_bench(digit_images, few)


def test_results_folder_holds_table_summary_and_samples(tmp_path: Path, results: Results) -> None:
    page = write_results(tmp_path, results, title="T", facts=["F."], config={"seeds": "0"})
    assert (tmp_path / "table.md").read_text() == page
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert [cell["method"] for cell in summary["cells"]] == [c.method for c in results.cells]
    assert summary["config"] == {"seeds": "0"}
    assert len(list((tmp_path / "samples").iterdir())) == len(results.cells)
    assert list(tmp_path.glob("accuracy-*.png"))


def test_cells_of_two_versions_of_the_code_are_pointed_out(
    tmp_path: Path, results: Results
) -> None:
    mixed = replace(results, cells=(replace(results.cells[0], code="older"), *results.cells[1:]))
    page = write_results(tmp_path, mixed, title="T", facts=[], config={})
    assert "computed by 2 versions of the code" in page
