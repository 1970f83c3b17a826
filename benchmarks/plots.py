"""Draw curves as SVG."""

from __future__ import annotations

from pathlib import Path

from benchmarks.harness import Curve

MARKS = "osD^v"


def draw(curve: Curve, folder: Path) -> Path:
    """Draw a curve: medians as a line, ranges as bars. Raise ImportError if matplotlib is not installed."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": curve.plot, "svg.fonttype": "none", "font.size": 9})
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 3.6), layout="constrained")
    for mark, (name, points) in zip(MARKS, curve.series.items()):
        known = [(x, sample) for x, sample in zip(curve.x, points) if sample is not None]
        x = [x for x, _ in known]
        middles = [sample.median for _, sample in known]
        below = [sample.median - min(sample.values) for _, sample in known]
        above = [max(sample.values) - sample.median for _, sample in known]
        axes.errorbar(x, middles, yerr=[below, above], marker=mark, markersize=4, capsize=2, label=name)
    axes.set_xscale("log")
    axes.set_xticks(curve.x, [f"{x:,}" for x in curve.x])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel(curve.label)
    axes.set_ylabel(curve.unit)
    axes.set_title(curve.title, fontsize=9)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{curve.plot}.svg"
    figure.savefig(path, metadata={"Date": None})
    pyplot.close(figure)
    return path
