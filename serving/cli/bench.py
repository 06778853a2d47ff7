"""`lethe bench forgetting`: compares methods on any image set, in tables, JSON and plots.

A user's mistake gives one sentence and exit code 2; what was computed before is kept.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from serving.cli.terminal import Config, Json, err, out, print_json

if TYPE_CHECKING:
    from forgetting.bench.paper import PaperConfig
    from forgetting.bench.run import BenchConfig, Results, Status
    from forgetting.bench.setting import Setting
    from forgetting.data.image_set import ImageSet

bench = typer.Typer(no_args_is_help=True, help="Benchmarks; results in files.")

When = Literal["all", "last", "none"]
Data = Annotated[str | None, typer.Option("--data", help="'digits', an image folder, a pack")]
SettingText = Annotated[
    str | None,
    typer.Option("--setting", help="'single 100-20' (20 of 100 classes), '4x20' (4 tasks of 20)"),
]
Methods = Annotated[
    str, typer.Option("--methods", help="names with commas, or 'all'; 'lethe:rank=4' is a variant")
]
Seeds = Annotated[str, typer.Option("--seeds", help="with commas; each draws classes and weights")]
Classes = Annotated[int | None, typer.Option("--classes", help="how many classes, drawn by seed")]
Shots = Annotated[int | None, typer.Option("--shots", help="images of each class [all]")]
Missing = Annotated[int, typer.Option("--missing", help="retained classes without images")]
Order = Annotated[
    Literal["random", "adversarial"],
    typer.Option("--order", help="adversarial: forget one of each two classes that are most alike"),
]
Steps = Annotated[int, typer.Option("--steps", min=1, help="optimizer steps of a task")]
Batch = Annotated[int, typer.Option("--batch", min=1, help="retain images of a step")]
Recipe = Annotated[str | None, typer.Option("--recipe", help="recipe of the backbones [by data]")]
PretrainSteps = Annotated[
    int | None, typer.Option("--pretrain-steps", help="steps of the backbones [the recipe's]")
]
BackboneDir = Annotated[
    Path | None, typer.Option("--backbone", help="folder of a backbone, instead of training one")
]
References = Annotated[
    When | None, typer.Option("--references", help="retrain without the classes, after which tasks")
]
Attacks = Annotated[When, typer.Option("--attacks", help="attack the models, after which tasks")]
Tune = Annotated[
    bool, typer.Option("--tune", help="choose each method's setting on validation images")
]
TuneSeed = Annotated[int, typer.Option("--tune-seed", help="seed for --tune, not one of --seeds")]
Paper = Annotated[
    Path | None,
    typer.Option("--paper", help="benchmarks/papers/*.toml: options and a paper's numbers"),
]
Name = Annotated[str | None, typer.Option("--name", help="name of the results' folder")]
Out = Annotated[Path, typer.Option("--out", help="folder of all results")]
Work = Annotated[
    Path | None, typer.Option("--work", help="folder for finished work [LETHE_HOME/bench]")
]


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    bench.command()(forgetting)
    app.add_typer(bench, name="bench")


# Without a callback, typer makes a group with one command into that command.
@bench.callback()
def _group() -> None: ...


def forgetting(
    data: Data = None,
    setting: SettingText = None,
    methods: Methods = "all",
    seeds: Seeds = "0,1,2",
    classes: Classes = None,
    shots: Shots = None,
    missing: Missing = 0,
    order: Order = "random",
    steps: Steps = 300,
    batch: Batch = 48,
    recipe: Recipe = None,
    pretrain_steps: PretrainSteps = None,
    backbone: BackboneDir = None,
    references: References = None,
    attacks: Attacks = "last",
    tune: Tune = False,
    tune_seed: TuneSeed = 1000,
    paper: Paper = None,
    name: Name = None,
    to: Out = Path("benchmarks/results"),
    work: Work = None,
    config: Config = None,
    as_json: Json = False,
) -> None:
    """Run every method on the same tasks. Finished work is kept: run the command again to go on."""
    with _usage_errors():
        from forgetting.bench.paper import PaperConfig, read_paper
        from serving.config.sources import load_settings

        asked = read_paper(paper) if paper is not None else PaperConfig(path=Path())
        options = _Options(
            data=data or asked.data,
            setting=setting or asked.setting,
            methods=",".join(asked.methods) if methods == "all" and asked.methods else methods,
            seeds=seeds,
            classes=classes,
            shots=asked.shots if shots is None else shots,
            missing=missing or asked.missing,
            order=order,
            steps=steps,
            batch=batch,
            recipe=recipe,
            pretrain_steps=pretrain_steps,
            backbone=backbone or (Path(asked.backbone) if asked.backbone else None),
            references=references,
            attacks=attacks,
            tune_seed=tune_seed if tune else None,
            work=work or load_settings(config).home_path / "bench",
        )
        page, folder = _run(options, asked, name=name, to=to)
        if as_json:
            print_json({"results": str(folder)})
        else:
            out.print(page, highlight=False, soft_wrap=True)
            out.print(f"written to {folder}", highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class _Options:
    """The command's options; None: the default."""

    data: str | None
    setting: str | None
    methods: str
    seeds: str
    classes: int | None
    shots: int | None
    missing: int
    order: Literal["random", "adversarial"]
    steps: int
    batch: int
    recipe: str | None
    pretrain_steps: int | None
    backbone: Path | None
    references: When | None
    attacks: When
    tune_seed: int | None
    work: Path


def _run(options: _Options, asked: PaperConfig, *, name: str | None, to: Path) -> tuple[str, Path]:
    """Run the benchmark. Returns the page of results and the folder with all files."""
    import torch

    from forgetting.bench.results import write_results
    from forgetting.bench.run import run_bench
    from forgetting.data.sources import open_image_set
    from forgetting.errors import DataError

    # More cores are used by more processes: OpenMP threads of two of them slow each other down.
    torch.set_num_threads(1)
    if options.data is None or options.setting is None:
        missing = "--data" if options.data is None else "--setting"
        raise DataError(f"{missing} is missing; see lethe bench forgetting --help")
    images = open_image_set(options.data)
    config = _config(options, images)
    title = name or f"{images.name}-{'-'.join(s.name for s in config.settings)}"
    folder = to / title
    with _progress() as (status, note):
        results = run_bench(images, config, status=status, note=note)
        page = write_results(
            folder,
            results,
            title=title,
            facts=_facts(images, config, results),
            config=_published(options),
            paper=asked.rows,
            note=note,
        )
    return page, folder


def _config(options: _Options, images: ImageSet) -> BenchConfig:
    from forgetting.bench.material import Origin
    from forgetting.bench.recipes import recipe_for
    from forgetting.bench.run import BenchConfig
    from forgetting.bench.setting import parse_settings
    from forgetting.methods.protocol import Budget

    settings: tuple[Setting, ...] = parse_settings(
        options.setting or "",
        available=len(images.classes),
        classes=options.classes,
        shots=options.shots,
        missing=options.missing,
        order=options.order,
    )
    # How a given backbone was trained is unknown, so it can't be retrained by default.
    references = options.references or ("none" if options.backbone else "all")
    return BenchConfig(
        settings=settings,
        methods=_names(options.methods),
        seeds=_numbers(options.seeds),
        origin=Origin(
            work=options.work,
            recipe=recipe_for(images.name, name=options.recipe, steps=options.pretrain_steps),
            given=options.backbone,
        ),
        budget=Budget(steps=options.steps, batch=options.batch),
        references=references,
        attacks=options.attacks,
        tune_seed=options.tune_seed,
    )


def _names(text: str) -> tuple[str, ...]:
    from forgetting.methods import METHODS

    names = [name.strip() for name in text.split(",") if name.strip()]
    return tuple(METHODS) if names == ["all"] else tuple(names)


def _numbers(text: str) -> tuple[int, ...]:
    from forgetting.errors import DataError

    words = [word.strip() for word in text.split(",") if word.strip()]
    if not all(word.isdigit() for word in words):
        raise DataError(f"expected --seeds like 0,1,2; found {text!r}")
    return tuple(int(word) for word in words)


def _facts(images: ImageSet, config: BenchConfig, results: Results) -> list[str]:
    """Sentences about the run, for the top of the page."""
    facts = [
        f"Data: {images.name}, {len(images.classes)} classes, {len(images)} images, "
        f"{images.manifest_digest[:19]}.",
        f"Seeds {', '.join(map(str, config.seeds))}: each draws the classes, their order, the "
        "backbone's first weights and the method's randomness.",
        f"Budget of a task: {config.budget.steps} steps of {config.budget.batch} retain images; "
        "methods with a recipe of their own follow that.",
        "Nothing was selected on test images."
        + (
            f" Settings were chosen on validation images of seed {config.tune_seed}."
            if config.tune_seed is not None
            else " Every method runs with its defaults."
        ),
    ]
    accuracies = results.backbone_accuracy
    if accuracies:
        shown = ", ".join(f"{value:.1%} (seed {seed})" for (_, seed), value in accuracies.items())
        facts.append(f"Test accuracy of the backbones: {shown}.")
    return facts


def _published(options: _Options) -> dict[str, Any]:
    """The options, for repeating the run. Folders are given by name only, without their path."""
    facts = {**options.__dict__}
    del facts["work"]
    for key in ("data", "backbone"):
        facts[key] = None if facts[key] is None else Path(facts[key]).name
    return facts


@contextlib.contextmanager
def _progress() -> Iterator[tuple[Any, Any]]:
    """A progress bar over all cells. Yields functions that update it and print a line above it.

    Where the output is redirected, a line is printed whenever a cell or a task begins.
    """
    if not err.is_terminal:
        yield _lines()
        return
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total} cells"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[now]}"),
        console=err,
        transient=True,
    )
    with bar:
        task = bar.add_task("bench", total=None, now="")

        def status(look: Status) -> None:
            now = _now(look)
            if look.look is not None:
                now += f", {look.look.phase}"
            if look.steps:
                now += f" {look.step}/{look.steps}"
            bar.update(task, completed=look.done, total=look.cells, now=now)

        def note(sentence: str) -> None:
            bar.console.print(sentence, highlight=False, soft_wrap=True)

        yield status, note


def _lines() -> tuple[Any, Any]:
    told = ""

    def status(look: Status) -> None:
        nonlocal told
        if _now(look) != told:
            told = _now(look)
            note(f"{datetime.now():%H:%M:%S} {look.done}/{look.cells} cells; {told}")

    def note(sentence: str) -> None:
        err.print(sentence, highlight=False, soft_wrap=True)

    return status, note


def _now(look: Status) -> str:
    task = "" if look.look is None else f", task {look.look.number}/{look.look.tasks}"
    return look.what + task


@contextlib.contextmanager
def _usage_errors() -> Iterator[None]:
    """Turn an error of this project into one sentence and exit code 2."""
    try:
        yield
    except KeyboardInterrupt:
        err.print("stopped; finished work is kept, and the same command goes on from there")
        raise typer.Exit(130) from None
    except Exception as error:
        roots = {cls.__module__.split(".")[0] for cls in type(error).__mro__}
        if not roots & {"forgetting", "serving"}:
            raise
        _refuse(str(error))


def _refuse(message: str) -> NoReturn:
    err.print(f"lethe: {' '.join(message.split())}", style="red", highlight=False, soft_wrap=True)
    raise typer.Exit(2)
