"""The plots: accuracy by task, recovery curves, sparsity by block.

matplotlib is an extra (`pip install 'lethe[bench]'`), because serving doesn't need it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from forgetting.bench.bars import OURS
from forgetting.bench.protocol import BACKBONE, RETRAINED
from forgetting.bench.summary import Column, Estimate, Summary
from forgetting.durable_file import replace_file
from forgetting.errors import ForgettingError


class PlotError(ForgettingError):
    """matplotlib isn't installed."""


def write_plots(summary: Summary, folder: Path) -> tuple[Path, ...]:
    """Write all plots that each setting has figures for; returns the files.

    Raises:
        PlotError: matplotlib isn't installed.
    """
    try:
        import matplotlib
    except ImportError as error:
        raise PlotError(
            "no plots: matplotlib isn't installed; pip install 'lethe[bench]'"
        ) from error
    matplotlib.use("Agg")
    written = []
    for setting in summary.settings:
        columns = [column for column in summary.columns if column.setting == setting]
        for name, draw in (
            ("accuracy", _accuracy),
            ("recovery", _recovery),
            ("sparsity", _sparsity),
        ):
            figure = draw(summary, columns)
            if figure is None:
                continue
            content = io.BytesIO()
            # Without matplotlib's version in the file, the same cells give the same bytes.
            figure.savefig(content, dpi=120, bbox_inches="tight", metadata={"Software": None})
            path = folder / f"{name}-{setting}.png"
            replace_file(path, content.getvalue())
            written.append(path)
    return tuple(written)


def _accuracy(summary: Summary, columns: Sequence[Column]) -> Any:
    """Acc_r, Acc_f and Acc_o of each method by task, with intervals over seeds."""
    titles = ("Acc_r", "Acc_f", "Acc_o")
    figure, axes = _axes(3)
    for method in summary.methods:
        reads = (
            [summary.mean(method, c, lambda t: t.acc_r.value) for c in columns],
            [summary.mean(method, c, lambda t: t.acc_f.value) for c in columns],
            [
                summary.mean(method, c, lambda t: t.acc_o.value if t.acc_o else None)
                for c in columns
            ],
        )
        for axis, values in zip(axes, reads, strict=True):
            _line(axis, method, range(1, len(columns) + 1), values)
    for axis, title in zip(axes, titles, strict=True):
        axis.set_title(title)
        axis.set_xticks(range(1, len(columns) + 1), [c.name for c in columns])
        axis.set_ylabel("%")
    # Acc_o lacks whoever has one task only.
    handles, labels = axes[0].get_legend_handles_labels()
    axes[-1].legend(handles, labels, fontsize=6, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _recovery(summary: Summary, columns: Sequence[Column]) -> Any:
    """Plain Acc_f while a head is retrained after the last task."""
    figure, (axis,) = _axes(1)
    drawn = False
    for method in summary.methods:
        tasks = summary.tasks(method, columns[-1]).values()
        curves = [task.leak["recovery"] for task in tasks if task.leak]
        if not curves:
            continue
        epochs = [point["epoch"] for point in curves[0]]
        means = [sum(c[i]["acc_f"] for c in curves) / len(curves) for i in range(len(epochs))]
        _line(axis, method, epochs, [Estimate(m, None, len(curves)) for m in means])
        drawn = True
    if not drawn:
        return None
    axis.set_title(f"head re-training after {columns[-1].name}")
    axis.set_xlabel("epoch")
    axis.set_ylabel("Acc_f, %")
    axis.legend(fontsize=6, loc="upper left", bbox_to_anchor=(1, 1))
    return figure


def _sparsity(summary: Summary, columns: Sequence[Column]) -> Any:
    """Norm of each block's update in the first task, as a share of the method's largest."""
    rows, names = [], []
    for method in summary.methods:
        if method in (BACKBONE, RETRAINED):
            continue
        norms = [t.update_norms for t in summary.tasks(method, columns[0]).values()]
        known = [n for n in norms if n and max(n) > 0]
        if known:
            means = [sum(n[i] / max(n) for n in known) / len(known) for i in range(len(known[0]))]
            rows.append(means)
            names.append(method)
    if not rows:
        return None
    figure, (axis,) = _axes(1)
    shown = axis.imshow(rows, aspect="auto", cmap="viridis", vmin=0, vmax=1)
    axis.set_yticks(range(len(names)), names, fontsize=6)
    axis.set_xticks(range(len(rows[0])))
    axis.set_xlabel("block")
    axis.set_title(f"update of each block, share of the largest, {columns[0].name}")
    figure.colorbar(shown)
    return figure


def _axes(count: int) -> tuple[Any, list[Any]]:
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.5 * count, 3.6))
    axes = figure.subplots(1, count, squeeze=False)
    for axis in axes[0]:
        axis.set_prop_cycle(color=[colormaps["tab20"](i) for i in range(20)])
    return figure, list(axes[0])


def _line(axis: Any, label: str, places: Sequence[int], values: Sequence[Estimate | None]) -> None:
    known = [(x, e) for x, e in zip(places, values, strict=True) if e is not None]
    if not known:
        return
    style = "--" if label in (BACKBONE, RETRAINED) else "-"
    axis.errorbar(
        [x for x, _ in known],
        [100 * e.mean for _, e in known],
        yerr=[100 * (e.half or 0.0) for _, e in known],
        label=label,
        linestyle=style,
        marker="o",
        markersize=3,
        linewidth=2.5 if label == OURS else 1,
        color="black" if label == OURS else None,
        zorder=3 if label == OURS else 2,
    )
