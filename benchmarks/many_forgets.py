"""Requests one by one: `python benchmarks/many_forgets.py --data DATA [--classes N] [--count N]`.

Forgets `--count` classes in a row, one command each, by the product's own task: training, report
and gates. A refused adapter isn't put on the stack, and its class stays masked only, as in service.
Each line gives the report's figures of the command's adapter on held-out images, refused or not:
what was lost on the retained classes against the bare backbone on the same images, plain and by
the head's margin; Acc_f of the command's class and Acc_o of all classes that earlier commands
forgot; the gates that refused; and CPU seconds of the command, training and report. There is no
pass or fail.

The backbone is trained by the recipe of the data set, and is kept in `--work`, as the other
benchmarks of forgetting do.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from forgetting.adapter.low_rank import AnyAdapter
from forgetting.bench.material import Material, Origin, prepare
from forgetting.bench.recipes import recipe_for
from forgetting.bench.setting import parse_settings
from forgetting.data.sources import open_image_set
from forgetting.errors import ForgettingError, TrainingError
from forgetting.report.figures import Report
from forgetting.task.run import TaskResult, run_task


@dataclass
class _Stream:
    """What the commands so far have made."""

    stack: list[AnyAdapter]
    gone: list[str]
    masked: list[str]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", required=True, help="'digits', an image folder, a pack")
    parser.add_argument("--classes", type=int, help="how many classes the backbone knows [all]")
    parser.add_argument("--count", type=int, default=50, help="commands in a row")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True, help="folder for the backbone")
    parser.add_argument("--out", type=Path, help="file for one JSON object a line")
    options = parser.parse_args()
    torch.set_num_threads(1)
    try:
        _run(options)
    except ForgettingError as error:
        parser.exit(2, f"many_forgets: {error}\n")


def _run(options: argparse.Namespace) -> None:
    images = open_image_set(options.data)
    (setting,) = parse_settings(
        f"{options.count}x1", available=len(images.classes), classes=options.classes
    )
    material = prepare(
        images,
        setting,
        seed=options.seed,
        origin=Origin(options.work, recipe_for(images.name)),
        references="none",
    )
    print("command | retained lost | by the margin | Acc_f | Acc_o | CPU s | refused by")
    stream = _Stream([], [], [])
    for number, task in enumerate(material.tasks, start=1):
        (name,) = task.forget
        began = time.process_time()
        try:
            result = _command(material, stream, name, number=number, seed=options.seed)
        except TrainingError as error:
            print(f"{number:7} | refused: {error}", flush=True)
            stream.masked.append(name)
            continue
        line = _line(result.report, number, time.process_time() - began)
        line["refused"] = [gate.name for gate in result.gates if not gate.passed]
        if result.passed:
            stream.stack.append(result.adapter)
            stream.gone.append(name)
        else:
            stream.masked.append(name)
        print(
            f"{number:7} | {_points(line['lost'])} | {_points(line['lost_margin'])} | "
            f"{_points(line['acc_f'])} | {_points(line['acc_o'])} | {line['cpu_seconds']:5.0f} | "
            f"{', '.join(line['refused'])}",  # type: ignore[arg-type]
            flush=True,
        )
        if options.out is not None:
            with options.out.open("a") as file:
                file.write(json.dumps(line) + "\n")
    print(f"{len(stream.masked)} of {len(material.tasks)} refused")


def _command(
    material: Material, stream: _Stream, name: str, *, number: int, seed: int
) -> TaskResult:
    ids = [f"adapter-{i}" for i in range(len(stream.stack))]
    return run_task(
        material.backbone,
        stream.stack,
        images=material.images,
        forget=[name],
        earlier=stream.gone,
        withheld=stream.masked,
        subjects={c: f"subject-{i}" for i, c in enumerate([*stream.gone, name])},
        stack_ids=ids,
        seed=1000 * seed + number,
    )


def _line(report: Report, number: int, seconds: float) -> dict[str, object]:
    margin = None
    if report.margin_r_before is not None and report.margin_r_after is not None:
        margin = report.margin_r_before.value - report.margin_r_after.value
    return {
        "command": number,
        "lost": report.acc_r_before.value - report.acc_r_weights.value,
        "lost_margin": margin,
        "acc_f": report.acc_f_weights.value,
        "acc_o": None if report.acc_o_weights is None else report.acc_o_weights.value,
        "cpu_seconds": seconds,
        "training_seconds": report.seconds,
        "groups": report.groups_kept,
    }


def _points(value: object) -> str:
    return "   –  " if value is None else f"{100 * float(value):6.2f}"  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
