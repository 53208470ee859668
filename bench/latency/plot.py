"""Draws a report as a figure: times of first and next phrases, and of each stage with its roofline."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.system.files import atomic_file
from rsrefseg.engines.system.tables import format_sig3

from .report import BenchReport, Measurement
from .scenarios import FIRST_PHRASE, NEXT_PHRASE

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette, which colour-blind people can distinguish.
_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C8C8C", "#B8A200")
_MAX_BRACKET = 3.0  # multiple of the longest bar; longer intervals are cut off
# A bar: its group on the vertical axis, its series (by colour), and its measurement.
_Bar = tuple[str, str, Measurement]


def draw_plot(report: BenchReport, path: Path) -> None:
    """Draw a report as a PNG file; needs matplotlib.

    Raises:
        RSRefSegError: the file cannot be written.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    scenarios = (FIRST_PHRASE.name, NEXT_PHRASE.name)
    phrases = [(one.runner, one.scenario, one) for one in report.measurements if one.scenario in scenarios]
    stages = [(one.span, one.runner, one) for one in report.measurements if one.span in tuple(Stage)]
    panels = {"image and phrase to mask": phrases, "stages, one image and one phrase": stages}
    drawn = {title: bars for title, bars in panels.items() if bars}
    heights = [1.0 + 0.24 * len(bars) for bars in drawn.values()]
    with rc_context({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False}):
        figure = Figure(figsize=(9.0, 0.4 + sum(heights)), layout="constrained")
        axes = figure.subplots(len(drawn), 1, squeeze=False, height_ratios=heights)[:, 0]
        figure.suptitle(f"preset {report.preset}, {report.machine.cpu}", x=0.01, ha="left", fontweight="bold")
        for panel, (title, bars) in zip(axes, drawn.items(), strict=True):
            panel.set_title(f"{title}: median and 95% interval, ms; | roofline", loc="left", fontsize=8.5)
            _draw_bars(panel, bars)
        with atomic_file(path) as temporary:
            figure.savefig(temporary, format="png", dpi=200, metadata={"Software": None})


def _draw_bars(axes: "Axes", bars: Sequence[_Bar]) -> None:
    """Draw bars by group and series with intervals and rooflines; bars of wrong results are hatched."""
    groups, series = list(dict.fromkeys(bar[0] for bar in bars)), list(dict.fromkeys(bar[1] for bar in bars))
    longest = _MAX_BRACKET * max(one.p50_ms for *_, one in bars)
    height = 0.8 / len(series)
    for group, name, one in bars:
        where = groups.index(group) - 0.4 + (series.index(name) + 0.5) * height
        colour = _COLOURS[series.index(name) % len(_COLOURS)]
        face, hatch = ("white", "////") if one.wrong else (colour, None)
        axes.barh(where, one.p50_ms, 0.9 * height, facecolor=face, edgecolor=colour, hatch=hatch)
        high = min(one.p50_high_ms, longest)
        axes.plot([one.p50_low_ms, high], [where, where], color="black", linewidth=0.9)
        if one.roofline is not None:
            axes.plot(one.roofline.least_ms, where, "|", color="black", markersize=7, markeredgewidth=1.4)
        ratio = "" if one.ratio is None else f"   {format_sig3(one.ratio.median)}x"
        text = f"{format_sig3(one.p50_ms)}{ratio}{'   WRONG' if one.wrong else ''}"
        axes.annotate(text, (high, where), xytext=(6, 0), textcoords="offset points", va="center", fontsize=7.5)
    for index, name in enumerate(series):
        axes.barh(0, 0, color=_COLOURS[index % len(_COLOURS)], label=name.replace("_", " "))
    times_ms = [one.p50_ms for *_, one in bars]
    axes.set_xscale("log")
    axes.set_xlim(min(times_ms) / 10, 10 * max(times_ms))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_yticks(range(len(groups)), groups)
    axes.set_ylim(len(groups) - 0.5, -0.5)
    axes.set_axisbelow(True)
    axes.grid(axis="x", color="#E8E8E8", linewidth=0.7)
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), frameon=False, ncols=4, fontsize=8)
