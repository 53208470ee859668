"""A bench report as one picture: how long a first and a next phrase take, and each stage beside its floor."""

import math
from collections.abc import Container, Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsrefseg.engines.errors import MissingPartError
from rsrefseg.engines.system.files import atomic_file
from rsrefseg.engines.system.tables import three_digits

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which people who confuse red and green can tell apart; none of them black, the floor's.
_SCENARIOS = {"first_phrase": ("first phrase", "#0072B2"), "next_phrase": ("next phrase", "#E69F00")}
_CONTENDERS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#8C8C8C", "#B8A200")
_MARKERS = "osD^vPXh"
_STAGES = ("sam_encoder", "siglip_vision", "siglip_text", "attn_prompter", "sam_decoder")
_GREY = "#5A5A5A"
_LEGEND: Mapping[str, Any] = {"frameon": False, "ncols": 5, "fontsize": 8, "borderaxespad": 0.1, "handletextpad": 0.4}
_BAR = 0.36
_WIDTH_IN, _DPI = 9.0, 200
_BEYOND = 2.0  # times the longest line, for the figures behind it
_LONGEST = 3.0  # times the longest bar, after which an interval is cut off
_DECADES = 3  # of an axis that has room for more than one label each

Row = Mapping[str, Any]


def check_plotting() -> None:
    """Refuse before anything is measured.

    Raises:
        MissingPartError: matplotlib is not installed.
    """
    if find_spec("matplotlib") is None:
        raise MissingPartError("the picture of a report needs matplotlib: pip install 'rsrefseg[report]'")


def draw_plot(document: Mapping[str, Any], path: Path) -> None:
    """Draw a report's JSON document as PNG.

    Args:
        document: as ``as_dict`` gives it; what it lacks is not drawn.
        path: the picture; one already there is replaced.

    Raises:
        MissingPartError: matplotlib is not installed.
        RSRefSegError: the picture cannot be written.
    """
    check_plotting()
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    latencies, floors = document.get("latencies", ()), document.get("roofline", ())
    names = list(dict.fromkeys(row["contender"] for row in (*latencies, *floors)))
    totals = [row for row in latencies if row["scenario"] in _SCENARIOS and row["span"] == "total"]
    floors = [row for row in floors if row["stage"] in _STAGES]
    stages = [stage for stage in _STAGES if any(row["stage"] == stage for row in floors)]
    heights = [0.9 + 0.55 * len(names), 0.9 + len(stages) * (0.22 + 0.14 * len(names))][: 2 if floors else 1]
    settings = {"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "hatch.linewidth": 0.8}
    with rc_context(settings):
        figure = Figure(figsize=(_WIDTH_IN, 0.4 + sum(heights)), layout="constrained")
        axes = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
        figure.suptitle(_title(document), x=0.01, ha="left", fontsize=10, fontweight="bold")
        _draw_answers(axes[0], totals, names, document)
        if floors:
            _draw_stages(axes[1], floors, names, stages, {row["contender"] for row in totals if row.get("wrong")})
            figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower right", **_LEGEND)
        with atomic_file(path) as temporary:
            figure.savefig(temporary, format="png", dpi=_DPI, metadata={"Software": None})


def _title(document: Mapping[str, Any]) -> str:
    preset, machine = document.get("bundle", {}).get("preset"), document.get("machine", {})
    cores = machine.get("usable_cores")
    gpu = str(machine.get("gpu") or "").partition(", driver")[0] if "cuda" in document.get("peaks", {}) else ""
    parts = [f"preset {preset}" if preset else "", gpu, str(machine.get("cpu", "")), f"{cores} cores" if cores else ""]
    return ", ".join(part for part in parts if part)


def _draw_answers(axes: "Axes", rows: Sequence[Row], names: Sequence[str], document: Mapping[str, Any]) -> None:
    """Two bars for each contender, with the intervals of their medians; wrong ones hatched."""
    ratios = {(row["contender"], row["scenario"], row["span"]): row["median"] for row in document.get("ratios", ())}
    longest = _LONGEST * max((row["p50_ms"] for row in rows), default=1.0)
    ends = {(row["contender"], row["scenario"]): min(row.get("p50_high_ms", row["p50_ms"]), longest) for row in rows}
    for place, (scenario, (label, colour)) in enumerate(_SCENARIOS.items()):
        mine = [row for row in rows if row["scenario"] == scenario]
        where = [names.index(row["contender"]) + (place - 0.5) * _BAR for row in mine]
        medians = [row["p50_ms"] for row in mine]
        bars = axes.barh(where, medians, 0.92 * _BAR, color=colour, label=label)
        axes.errorbar(
            medians, where, xerr=_reach(mine), fmt="none", ecolor="black", elinewidth=0.9, capsize=2.5, capthick=0.9
        )
        for bar, row, height in zip(bars, mine, where, strict=True):
            if row.get("wrong"):
                bar.set(hatch="////", facecolor="white", edgecolor=colour)
            ratio = ratios.get((row["contender"], scenario, "total"))
            text = _time(row["p50_ms"]) + (f"   {three_digits(ratio)}x" if ratio is not None else "")
            text += "   WRONG" if row.get("wrong") else ""
            _note(axes, ends[row["contender"], scenario], height, text, 8)
    wrong = {row["contender"] for row in rows if row.get("wrong")}
    axes.set_yticks(range(len(names)), [f"{name}\n(wrong)" if name in wrong else name for name in names])
    axes.invert_yaxis()
    _log_axis(axes, [*(row["p50_ms"] for row in rows), *ends.values()])
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), **_LEGEND)
    reference = next((row["reference"] for row in document.get("ratios", ())), None)
    told = f", times as fast as {reference}" if reference else ""
    axes.set_title(f"picture and phrase to mask: median, 95% interval{told}", loc="left", fontsize=8.5)


def _draw_stages(
    axes: "Axes", rows: Sequence[Row], names: Sequence[str], stages: Sequence[str], wrong: Container[str]
) -> None:
    """For each stage and contender a line from the floor, a black stroke, to what was measured; hollow if wrong."""
    step = 0.8 / max(len(names), 1)
    for number, name in enumerate(names):
        mine = [row for row in rows if row["contender"] == name]
        where = [stages.index(row["stage"]) - 0.4 + (number + 0.5) * step for row in mine]
        measured, floor = ([row[key] for row in mine] for key in ("p50_ms", "floor_ms"))
        colour, marker = _CONTENDERS[number % len(_CONTENDERS)], _MARKERS[number % len(_MARKERS)]
        axes.hlines(where, floor, measured, color=colour, linewidth=1.6, alpha=0.55)
        axes.plot(floor, where, "|", color="black", markersize=7, markeredgewidth=1.4)
        inside = "white" if name in wrong else colour
        label = f"{name} (wrong)" if name in wrong else name
        axes.plot(measured, where, marker, color=colour, markerfacecolor=inside, markersize=5, label=label)
        for row, height in zip(mine, where, strict=True):
            end = max(row["p50_ms"], row["floor_ms"])
            _note(axes, end, height, f"{row['share']:.0%}", 7)
    for boundary in range(1, len(stages)):
        axes.axhline(boundary - 0.5, color="#E0E0E0", linewidth=0.8, zorder=0)
    axes.plot([], [], "|", color="black", markersize=7, markeredgewidth=1.4, label="floor")
    axes.set_yticks(range(len(stages)), [stage.replace("_", " ") for stage in stages])
    axes.set_ylim(len(stages) - 0.5, -0.5)
    _log_axis(axes, [row[key] for row in rows for key in ("p50_ms", "floor_ms")])
    axes.set_title("stages, one picture and one phrase: median, and the floor's share of it", loc="left", fontsize=8.5)


def _note(axes: "Axes", end: float, height: float, text: str, size: int) -> None:
    """Behind the end of a line, over what there may be of it; no reason for the layout to make room."""
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 0.5, "alpha": 0.85}
    place: dict[str, Any] = {"xytext": (7, 0), "textcoords": "offset points", "va": "center"}
    note = axes.annotate(text, (end, height), fontsize=size, color=_GREY, bbox=behind, annotation_clip=False, **place)
    note.set_in_layout(False)


def _reach(rows: Iterable[Row]) -> list[list[float]]:
    """How far the intervals reach below and above the medians; not at all where they are unknown."""
    ends = [(row.get("p50_low_ms"), row["p50_ms"], row.get("p50_high_ms")) for row in rows]
    return [
        [middle - low if low is not None else 0.0 for low, middle, _ in ends],
        [high - middle if high is not None else 0.0 for _, middle, high in ends],
    ]


def _log_axis(axes: "Axes", values: Sequence[float]) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    axes.set_xlim(min(values, default=1.0) / 2, max(values, default=1.0) * _BEYOND)
    decades = math.log10(max(values, default=1.0) / min(values, default=1.0))
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 3.0) if decades <= _DECADES else (1.0,), numticks=20))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: _tick(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="x", color="#E8E8E8", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)


def _tick(milliseconds: float) -> str:
    if milliseconds < 0.1:
        return f"{milliseconds * 1e3:g} µs"
    return f"{milliseconds / 1e3:g} s" if milliseconds >= 1e3 else f"{milliseconds:g} ms"


def _time(milliseconds: float) -> str:
    return f"{milliseconds / 1e3:.2f} s" if milliseconds >= 1e3 else f"{three_digits(milliseconds)} ms"
