"""``rsrefseg bench``: latency by span and end to end, contenders in turn, with proof that they answer alike."""

from collections.abc import Sequence
from pathlib import Path

from bench.comparison import tensor_error
from bench.contenders import TORCH, Contender, Tensors, open_contenders
from bench.latency_report import Agreement, BenchReport, BundleFacts, ContenderFacts, LatencyRow, RatioRow, Settings
from bench.machine import busy_notes, others_busy_share, this_machine
from bench.scenarios import SCENARIOS, Scenario, question_for
from bench.startup import measure_startup
from bench.statistics import Ratio, Summary
from bench.tolerances import Scope, judge, tolerances
from bench.turns import SETTLE_MS, TURNS_PER_ROUND, Observation, take_turns, warm_up
from engines.bundle import Bundle
from engines.contracts import Stage
from engines.progress import ProgressLine
from engines.reference import ReferenceSample, load_reference


def run_bench(bundle: Path | None, backends: Sequence[str], run: Path | None, rounds: int) -> BenchReport:
    """Measure contenders against each other on one bundle.

    Args:
        bundle: the bundle; default is ``$RSREFSEG_BUNDLE`` or ``./bundle``.
        backends: ``torch`` and backends of the engines, in the order of the report; ratios are to the first.
        run: the run that holds the bundle's model, for ``torch``; default is the latest.
        rounds: in each, every contender has two turns.

    Raises:
        BundleError: the bundle is not whole.
        BadInputError: an unknown contender, or a run that does not hold the bundle's model.
        MissingPartError: a contender that was asked for cannot run here.
    """
    opened = Bundle.open(bundle)
    question = question_for(opened)
    sample = load_reference(opened)[0] if opened.manifest.reference is not None else None
    contenders, left_out = open_contenders(list(backends), opened, run)
    facts, entrants = [], []
    with ProgressLine("measuring") as progress:
        notes = [*opened.manifest.provenance.notes]
        notes += [f"without {entry.name}: {entry.reason}" for entry in left_out]
        for note in notes:
            progress.say(note)
        busy = [others_busy_share()]
        try:
            for contender in contenders:
                progress.say(f"{contender.name}: start-up and memory in a process of its own, then warm-up")
                startup = measure_startup(contender.name, opened, run)
                contender.load()
                agreement = _agreement(contender, sample) if sample is not None else None
                warm = warm_up(contender, question)
                entrants.append((contender, warm))
                facts.append(
                    ContenderFacts(contender.name, contender.threads, contender.providers(), startup, agreement, warm)
                )
            observations = take_turns(entrants, question, rounds, progress.update)
        finally:
            for contender in contenders:
                contender.close()
        busy.append(others_busy_share())
    notes += busy_notes(busy)
    names = [contender.name for contender in contenders]
    height, width = question.picture.shape[:2]
    return BenchReport(
        bundle=BundleFacts.of(opened),
        machine=this_machine(),
        settings=Settings(rounds, TURNS_PER_ROUND, SETTLE_MS, (height, width), question.image_size),
        contenders=tuple(facts),
        others_busy=tuple(busy),
        notes=tuple(notes),
        latencies=latency_rows(observations, names),
        ratios=ratio_rows(observations, names),
    )


def latency_rows(observations: Sequence[Observation], names: Sequence[str]) -> tuple[LatencyRow, ...]:
    """Percentiles of every span of every contender."""
    return tuple(
        LatencyRow(name, scenario.name, span, Summary.of([seen.spans_ms[span] for seen in mine]))
        for scenario in SCENARIOS
        for name in names
        if (mine := _of(observations, name, scenario))
        for span in scenario.spans
    )


def ratio_rows(observations: Sequence[Observation], names: Sequence[str]) -> tuple[RatioRow, ...]:
    """How many times faster than the first contender every other one is, from each round's sums."""
    reference, *others = names
    return tuple(
        RatioRow(
            name,
            reference,
            scenario.name,
            span,
            Ratio.of(_by_round(observations, reference, scenario, span), _by_round(observations, name, scenario, span)),
        )
        for scenario in SCENARIOS
        for name in others
        for span in scenario.spans
    )


def _agreement(contender: Contender, sample: ReferenceSample) -> Agreement:
    """The contender's mask logits, from pixels and tokens, against those that FP32 PyTorch gave at export."""
    tensors: Tensors = {name: sample.tensors[name] for name in ("image", "input_ids", "token_mask")}
    for stage in Stage:
        tensors |= contender.run(stage, tensors)
    error = tensor_error(sample.tensors["mask_logits"], contender.to_host(tensors["mask_logits"]))
    precisions = {record.precision for record in contender.bundle.manifest.stages.values()}
    coarsest = "fp16" if "fp16" in precisions and contender.name != TORCH else "fp32"
    return Agreement(error, judge(error.measures(), tolerances(coarsest, Scope.STAGE, Stage.SAM_DECODER)))


def _by_round(observations: Sequence[Observation], name: str, scenario: Scenario, span: str) -> list[float]:
    """A contender's milliseconds in each round, summed over its turns."""
    sums: dict[int, float] = {}
    for seen in _of(observations, name, scenario):
        sums[seen.round] = sums.get(seen.round, 0.0) + seen.spans_ms[span]
    return [sums[number] for number in sorted(sums)]


def _of(observations: Sequence[Observation], name: str, scenario: Scenario) -> list[Observation]:
    return [seen for seen in observations if (seen.contender, seen.scenario) == (name, scenario.name)]
