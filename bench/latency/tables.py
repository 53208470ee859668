"""A bench report as tables for a person."""

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from rsrefseg.engines.system.tables import plain_table, three_digits

from .scenarios import SCENARIOS, Scenario
from .startup import STARTS
from .summary import Ratio

if TYPE_CHECKING:
    from .report import BenchReport, ContenderFacts, LatencyRow

_TITLES = {
    "first_phrase": "first phrase: a new picture and a new phrase",
    "next_phrase": "next phrase: the picture is encoded, the phrase is new",
    "next_8_phrases": "8 new phrases at once, the picture is encoded",
    "next_32_phrases": "32 new phrases at once, the picture is encoded",
    "first_8_phrases": "a new picture and 8 phrases at once",
}


def render_bench(report: "BenchReport") -> Group:
    """All tables of a report, and what it was measured on."""
    parts: list[RenderableType] = [_head(report)]
    known = {scenario.name: scenario for scenario in SCENARIOS}
    parts += [
        _stage_table(report, scenario) if scenario.by_stage else _scenario_table(report, scenario)
        for scenario in (known[name] for name in report.settings.scenarios)
    ]
    if report.roofline:
        parts.append(_roofline_table(report))
    parts.append(_contender_table(report))
    parts += [
        Text(f"{contender.name}: no start-up figures: {contender.startup.error}", "yellow")
        for contender in report.contenders
        if contender.startup.error is not None
    ]
    parts += [Text(_wrong(contender), "bold red") for contender in report.contenders if contender.is_wrong]
    versions = ", ".join(f"{name} {version}" for name, version in report.machine.versions.items())
    parts.append(f"{report.machine.system}, Python {report.machine.python}, {versions}")
    parts += [Text(f"note: {note}", "yellow") for note in report.notes]
    return Group(*parts)


def _head(report: "BenchReport") -> str:
    machine, settings = report.machine, report.settings
    height, width = settings.picture
    return (
        f"{report.bundle.path}: preset {report.bundle.preset}, {report.bundle.digest[:12]}; "
        f"picture {height} x {width}\n"
        f"{machine.cpu}, {report.contenders[0].threads} threads on {machine.usable_cores} usable cores\n"
        f"{settings.rounds} rounds; in brackets 95% intervals; "
        f"vs {report.contenders[0].name}: times as fast, median of rounds"
    )


def _scenario_table(report: "BenchReport", scenario: Scenario) -> Table:
    title = _TITLES.get(scenario.name, scenario.name)
    reference, *others = (contender.name for contender in report.contenders)
    figures = [
        "p50 ms",
        "p90",
        "p99",
        *([f"vs {reference}"] if others else []),
        "phrases/s",
        "of its first",
        "of floor",
        "error",
    ]
    table = plain_table(title, ["contender"], figures)
    (span,) = scenario.spans
    for name in (reference, *others):
        row = report.row(name, scenario.name, span)
        ratio = [] if not others else ["" if name == reference else _ratio(report.ratio(name, scenario.name, span))]
        share = {(one.contender, one.scenario): one.share for one in report.shares}.get((name, scenario.name))
        table.add_row(
            name,
            _median(row),
            three_digits(row.summary.p90_ms),
            three_digits(row.summary.p99_ms),
            *ratio,
            "" if row.phrases_per_s is None else three_digits(row.phrases_per_s),
            "" if share is None else f"{share.median:.1%}",
            "?" if row.floor_share is None else f"{row.floor_share:.0%}",
            _agreement(row),
            style="bold red" if row.wrong else None,
        )
    return table


def _stage_table(report: "BenchReport", scenario: Scenario) -> Table:
    """Medians of every span, with what each contender is worth beside the first."""
    reference, *others = (contender.name for contender in report.contenders)
    figures = [*(column for name in (reference, *others) for column in (name, "error", "vs"))]
    figures.remove("vs")
    table = plain_table("stages one by one, ms (one picture, one phrase)", ["span"], figures)
    for span in scenario.spans:
        cells = []
        for name in (reference, *others):
            row = report.row(name, scenario.name, span)
            cells += [three_digits(row.summary.p50_ms), "" if row.agreement is None else _agreement(row)]
            if name != reference:
                cells.append(f"{three_digits(report.ratio(name, scenario.name, span).median)}x")
        table.add_row(span, *cells)
    return table


def _roofline_table(report: "BenchReport") -> Table:
    names = list(dict.fromkeys(row.contender for row in report.roofline))
    rows = {(row.contender, row.stage): row for row in report.roofline}
    figures = ["GFLOP", "MB", *(column for name in names for column in ("floor ms", name))]
    table = plain_table("share of the floor: 100% is all this machine can do", ["stage"], figures)
    for stage in dict.fromkeys(row.stage for row in report.roofline):
        mine = [rows[name, stage] for name in names if (name, stage) in rows]
        cells = [cell for row in mine for cell in (three_digits(row.floor_ms), f"{row.share:.0%}")]
        table.add_row(stage, f"{mine[0].flops / 1e9:.1f}", f"{mine[0].bytes / 1e6:.0f}", *cells)
    return table


def _contender_table(report: "BenchReport") -> Table:
    figures = ["import", "load", "cold", "MiB"]
    title = f"ms to import and load, of {STARTS} processes, and of the first to answer cold; its peak memory"
    table = plain_table(title, ["contender", "runs on"], figures)
    for contender in report.contenders:
        startup = contender.startup
        load = _whole(startup.load_ms)
        if startup.load_least_ms is not None and startup.load_most_ms is not None:
            load += f" ({startup.load_least_ms:.0f} - {startup.load_most_ms:.0f})"
        table.add_row(
            contender.name,
            ", ".join(dict.fromkeys(contender.providers.values())),
            _whole(startup.import_ms),
            load,
            _whole(startup.first_answer_ms),
            _whole(startup.peak_memory_mib),
        )
    return table


def _whole(value: float | None) -> str:
    return "?" if value is None else f"{value:.0f}"


def _wrong(contender: "ContenderFacts") -> str:
    reasons = "; ".join(
        f"{place}: {verdict}"
        for place, agreement in contender.failures
        for verdict in agreement.verdicts
        if not verdict.passed
    )
    return f"WRONG: {contender.name} answers otherwise than FP32 PyTorch, its times do not count ({reasons})"


def _median(row: "LatencyRow") -> str:
    summary = row.summary
    low, high = three_digits(summary.p50_low_ms), three_digits(summary.p50_high_ms)
    return f"{three_digits(summary.p50_ms)} ({low} - {high})"


def _ratio(ratio: Ratio) -> str:
    return f"{three_digits(ratio.median)}x ({three_digits(ratio.low)} - {three_digits(ratio.high)})"


def _agreement(row: "LatencyRow") -> str:
    if row.agreement is None:
        return "?"
    return f"{'WRONG ' if row.wrong else ''}{row.agreement.text}"
