"""From observations to the rows of a bench report."""

from collections.abc import Mapping, Sequence

from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage

from ..system.peaks import Peaks
from .report import ContenderFacts, LatencyRow, RatioRow, RooflineRow, ShareRow
from .roofline import floor_of, scenario_floor_ms, share
from .rounds import Observation
from .scenarios import FIRST_PHRASE, STAGES, TOTAL, Scenario
from .summary import Ratio, Summary


def latency_rows(
    observations: Sequence[Observation],
    facts: Sequence[ContenderFacts],
    scenarios: Sequence[Scenario],
    bundle: Bundle,
    peaks: Mapping[str, Peaks],
) -> tuple[LatencyRow, ...]:
    """Percentiles of every span of every contender, with its agreement and its floor.

    Args:
        observations: of whole rounds.
        facts: of the contenders, in the order of the report.
        scenarios: that were timed.
        bundle: the model.
        peaks: by device.
    """
    return tuple(
        _latency_row(
            fact,
            scenario,
            span,
            _times(observations, fact.name, scenario, span),
            _floor_ms(fact, scenario, span, bundle, peaks.get(fact.device)),
        )
        for scenario in scenarios
        for fact in facts
        for span in scenario.spans
    )


def ratio_rows(
    observations: Sequence[Observation], names: Sequence[str], scenarios: Sequence[Scenario]
) -> tuple[RatioRow, ...]:
    """How many times faster than the first contender every other one is, round by round."""
    reference, *others = names
    return tuple(
        RatioRow(
            name,
            reference,
            scenario.name,
            span,
            Ratio.of(
                _times(observations, reference, scenario, span),
                _times(observations, name, scenario, span),
            ),
        )
        for scenario in scenarios
        for name in others
        for span in scenario.spans
    )


def share_rows(
    observations: Sequence[Observation], names: Sequence[str], scenarios: Sequence[Scenario]
) -> tuple[ShareRow, ...]:
    """How long each scenario takes as a share of the same contender's first phrase in the same round."""
    return tuple(
        ShareRow(
            name,
            scenario.name,
            Ratio.of(
                _times(observations, name, scenario, TOTAL),
                _times(observations, name, FIRST_PHRASE, TOTAL),
            ),
        )
        for scenario in scenarios
        if scenario is not FIRST_PHRASE and not scenario.by_stage
        for name in names
    )


def roofline_rows(
    latencies: Sequence[LatencyRow], facts: Sequence[ContenderFacts], bundle: Bundle, peaks: Mapping[str, Peaks]
) -> tuple[RooflineRow, ...]:
    """Each stage beside its floor. None for a contender whose precision, or device, has no measured peak here."""
    by_stage = {(row.contender, row.span): row for row in latencies if row.scenario == STAGES.name}
    rows = []
    for fact in facts:
        for stage in Stage:
            row, precision = by_stage.get((fact.name, stage.value)), fact.precision[stage.value]
            if row is None or fact.device not in peaks:
                continue
            if (floor := floor_of(bundle.manifest.stages[stage], peaks[fact.device], precision)) is None:
                continue
            rows.append(
                RooflineRow(
                    contender=fact.name,
                    stage=stage.value,
                    precision=precision,
                    flops=floor.flops,
                    bytes=floor.bytes,
                    floor_ms=floor.floor_ms,
                    bound=floor.bound,
                    p50_ms=row.summary.p50_ms,
                    share=share(floor, row.summary.p50_ms),
                )
            )
    return tuple(rows)


def _latency_row(
    fact: ContenderFacts, scenario: Scenario, span: str, timings_ms: Sequence[float], floor_ms: float | None
) -> LatencyRow:
    summary = Summary.of(timings_ms)
    answers_per_s = 1e3 / summary.p50_ms if span == TOTAL else None
    return LatencyRow(
        contender=fact.name,
        scenario=scenario.name,
        span=span,
        summary=summary,
        agreement=fact.agreements.get((scenario.name, span)),
        floor_ms=floor_ms,
        images_per_s=answers_per_s if scenario.fresh_image else None,
        phrases_per_s=answers_per_s * scenario.phrases if answers_per_s is not None else None,
    )


def _floor_ms(fact: ContenderFacts, scenario: Scenario, span: str, bundle: Bundle, peaks: Peaks | None) -> float | None:
    stages = bundle.manifest.stages
    if peaks is None or span.startswith("host_"):
        return None
    if span == TOTAL:
        precisions = {stage: fact.precision[stage.value] for stage in stages}
        return scenario_floor_ms(stages, peaks, precisions, scenario.fresh_image, scenario.phrases)
    floor = floor_of(stages[Stage(span)], peaks, fact.precision[span])
    return floor.floor_ms if floor is not None else None


def _times(observations: Sequence[Observation], name: str, scenario: Scenario, span: str) -> list[float]:
    """A contender's milliseconds, in the order of the rounds."""
    mine = [seen for seen in observations if (seen.contender, seen.scenario) == (name, scenario.name)]
    return [seen.spans_ms[span] for seen in sorted(mine, key=lambda seen: seen.round)]
