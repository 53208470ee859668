"""A bench report as tables for a person."""

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.scenarios import SCENARIOS, TOTAL, Scenario
from bench.statistics import Summary
from bench.tables import plain_table

if TYPE_CHECKING:
    from bench.latency_report import BenchReport, ContenderFacts

_TITLES = {
    "first_phrase": "first phrase: a new picture and a new phrase",
    "next_phrase": "next phrase: the picture is encoded, the phrase is new",
}


def render_bench(report: "BenchReport") -> Group:
    """All tables of a report, and what it was measured on."""
    machine, settings = report.machine, report.settings
    height, width = settings.picture
    head = (
        f"{report.bundle.path}: preset {report.bundle.preset}, {report.bundle.digest[:12]}; "
        f"picture {height} x {width}\n"
        f"{machine.cpu}, {report.contenders[0].threads} threads on {machine.usable_cores} usable cores\n"
        f"{settings.rounds} rounds of {settings.turns_per_round} turns each; ms: p50 / p90 / p99; "
        f"vs {report.contenders[0].name}: times as fast, median (10% - 90% of rounds)"
    )
    parts: list[RenderableType] = [head]
    parts += [_scenario_table(report, scenario) for scenario in SCENARIOS]
    parts.append(_contender_table(report))
    parts += [Text(_wrong(contender), "bold red") for contender in report.contenders if contender.is_wrong]
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    parts.append(f"{machine.system}, Python {machine.python}, {versions}")
    parts += [Text(f"note: {note}", "yellow") for note in report.notes]
    return Group(*parts)


def _scenario_table(report: "BenchReport", scenario: Scenario) -> Table:
    reference, *others = (contender.name for contender in report.contenders)
    figures = [reference, *(column for name in others for column in (name, f"vs {reference}"))]
    table = plain_table(_TITLES.get(scenario.name, scenario.name), ["span"], figures)
    for span in scenario.spans:
        cells = [_times(report.latency(reference, scenario.name, span))]
        for name in others:
            ratio = report.ratio(name, scenario.name, span)
            cells.append(_times(report.latency(name, scenario.name, span)))
            cells.append(f"{_three_digits(ratio.median)}x ({_three_digits(ratio.p10)} - {_three_digits(ratio.p90)})")
        table.add_row(span, *cells, style="bold" if span == TOTAL else None)
    return table


def _times(summary: Summary) -> str:
    return " / ".join(_three_digits(value) for value in (summary.p50_ms, summary.p90_ms, summary.p99_ms))


def _three_digits(value: float) -> str:
    return f"{value:.{2 if value < 10 else 1 if value < 100 else 0}f}"


def _contender_table(report: "BenchReport") -> Table:
    figures = ["import", "load", "cold", "MiB", "error"]
    title = "ms to import, load, answer cold; peak memory; logit error: each in a process of its own"
    table = plain_table(title, ["contender", "runs on"], figures)
    for contender in report.contenders:
        startup, agreement = contender.startup, contender.agreement
        values = (startup.import_ms, startup.load_ms, startup.first_answer_ms, startup.peak_memory_mib)
        table.add_row(
            contender.name,
            ", ".join(dict.fromkeys(contender.providers.values())),
            *("?" if value is None else f"{value:.0f}" for value in values),
            "?" if agreement is None else f"{agreement.error.share_of_max:.1e}",
        )
    return table


def _wrong(contender: "ContenderFacts") -> str:
    assert contender.agreement is not None
    reasons = "; ".join(str(verdict) for verdict in contender.agreement.verdicts if not verdict.passed)
    return f"WRONG: {contender.name} answers otherwise than FP32 PyTorch, its times do not count ({reasons})"
