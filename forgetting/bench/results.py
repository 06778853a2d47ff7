"""The results folder: summary.json, table.md, plots, and every cell's answers image by image."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from forgetting.bench.bars import judge
from forgetting.bench.cell import samples_file
from forgetting.bench.paper import PaperRow
from forgetting.bench.plots import PlotError, write_plots
from forgetting.bench.run import Results
from forgetting.bench.summary import Summary
from forgetting.bench.table import markdown
from forgetting.durable_file import replace_file

TABLE, SUMMARY = "table.md", "summary.json"


def write_results(
    folder: Path,
    results: Results,
    *,
    title: str,
    facts: Sequence[str],
    config: Mapping[str, Any],
    paper: Sequence[PaperRow] = (),
    note: Callable[[str], None] | None = None,
) -> str:
    """Write everything; returns the Markdown page.

    Args:
        folder: The results folder. It is made if it doesn't exist; files in it are replaced.
        results: The results of a run.
        title: Title of the page.
        facts: Sentences about the run.
        config: The options of the run as JSON values, for repeating it.
        paper: The papers' rows.
        note: Called with a sentence if plots can't be drawn.
    """
    summary = Summary(results.cells)
    codes = {cell.code for cell in results.cells}
    told = list(facts)
    if len(codes) > 1:
        told.append(
            f"Cells were computed by {len(codes)} versions of the code: "
            "delete the older ones and run again for figures of one version."
        )
    page = markdown(summary, title=title, facts=told, paper=paper, choices=results.choices)
    for cell, path in zip(results.cells, results.files, strict=True):
        name = f"{cell.setting}-{cell.method}-seed{cell.seed}.json.gz"
        replace_file(folder / "samples" / name, samples_file(path).read_bytes())
    facts_json = {
        "config": dict(config),
        "cells": [asdict(cell) for cell in results.cells],
        "bars": {s: [asdict(bar) for bar in judge(summary, s)] for s in summary.settings},
        "choices": [
            {"setting": setting, "method": method, **asdict(choice)}
            for (setting, method), choice in results.choices.items()
        ],
    }
    content = json.dumps(facts_json, indent=1, sort_keys=True, default=list)
    replace_file(folder / SUMMARY, content.encode() + b"\n")
    replace_file(folder / TABLE, page.encode())
    try:
        write_plots(summary, folder)
    except PlotError as error:
        if note is not None:
            note(str(error))
    return page
