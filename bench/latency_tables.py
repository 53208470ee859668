"""A bench report as tables for a person."""

from typing import TYPE_CHECKING

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from bench.scenarios import SCENARIOS, TOTAL, Scenario
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
        f"{report.bundle.path} (preset {report.bundle.preset}, {report.bundle.digest[:12]}), picture {height} x {width}\n"
        f"{machine.cpu}, {machine.usable_cores} of {machine.cores} cores; {settings.rounds} rounds of "
        f"{settings.turns_per_round} turns each; times in ms: p50 / p90 / p99; ratio: median (10% - 90% of rounds)"
    )
    parts: list[RenderableType] = [head]
    parts += [_scenario_table(report, scenario) for scenario in SCENARIOS]
    parts.append(_contender_table(report))
    parts += [Text(_wrong(contender), "bold red") for contender in report.contenders if contender.is_wrong]
    versions = ", ".join(f"{name} {version}" for name, version in machine.versions.items())
    parts.append(f"{machine.system}, Python {machine.python}, {versions}")
    parts += [f"note: {note}" for note in report.notes]
    return Group(*parts)


def _scenario_table(report: "BenchReport", scenario: Scenario) -> Table:
    names = [contender.name for contender in report.contenders]
    reference = names[0]
    ratios = [f"{reference} / {name}" for name in names[1:]]
    table = plain_table(_TITLES.get(scenario.name, scenario.name), ["span"], [*names, *ratios])
    for span in scenario.spans:
        times = [report.latency(name, scenario.name, span) for name in names]
        cells = [f"{time.p50_ms:.2f} / {time.p90_ms:.2f} / {time.p99_ms:.2f}" for time in times]
        for name in names[1:]:
            ratio = report.ratio(name, scenario.name, span)
            cells.append(f"{ratio.median:.2f}x ({ratio.p10:.2f} - {ratio.p90:.2f})")
        table.add_row(span, *cells, style="bold" if span == TOTAL else None)
    return table


def _contender_table(report: "BenchReport") -> Table:
    figures = ["threads", "import ms", "load ms", "cold ms", "peak MiB", "logit error"]
    table = plain_table("start-up and memory, each in a process of its own", ["contender", "runs on"], figures)
    for contender in report.contenders:
        startup = contender.startup
        values = (startup.import_ms, startup.load_ms, startup.first_answer_ms, startup.peak_memory_mib)
        agreement = contender.agreement
        table.add_row(
            contender.name,
            ", ".join(dict.fromkeys(contender.providers.values())),
            str(contender.threads),
            *("?" if value is None else f"{value:.0f}" for value in values),
            "?" if agreement is None else f"{agreement.error.share_of_max:.1e}",
        )
    return table


def _wrong(contender: "ContenderFacts") -> str:
    assert contender.agreement is not None
    reasons = "; ".join(str(verdict) for verdict in contender.agreement.verdicts if not verdict.passed)
    return f"WRONG: {contender.name} answers otherwise than FP32 PyTorch, its times do not count ({reasons})"
