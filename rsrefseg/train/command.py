"""``rsrefseg train``: from options to a run, with progress, and what it came to."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

from engines.errors import BadInputError
from engines.progress import ProgressLine
from engines.text import Padding
from rsrefseg.config import ModelConfig, model_config
from rsrefseg.metrics import MetricsResult
from rsrefseg.train import base as base_weights
from rsrefseg.train.base import BaseWeights
from rsrefseg.train.config import LoraSettings, Precision, TrainConfig, from_scratch_config
from rsrefseg.train.entry import train
from rsrefseg.train.run import Run, latest_run, next_run
from rsrefseg.train.setup import DataChoice
from rsrefseg.train.trainer import StepReport, Watcher
from rsrefseg.weights.public_files import check_public_files


@dataclass(frozen=True, slots=True)
class TrainRequest:
    """The options of ``rsrefseg train``; ``settings`` holds those of :class:`TrainConfig`, None where not given."""

    data: Path
    preset: str
    out: Path | None
    resume: bool
    from_scratch: bool
    base: Path | None
    tokenizer: Path | None
    rank: int
    text_padding: str
    dense_prompt: bool
    resize_masks: bool
    settings: dict[str, Any]
    sam: Path | None = None
    siglip: Path | None = None
    random_weights: bool = False


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What ``train`` prints at its end."""

    run: str
    steps: int
    best_gIoU: float | None  # noqa: N815 (the field's spelling)
    trained_parameters: int
    total_parameters: int

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)

    def render(self) -> str:
        """Two lines for a person."""
        share = self.trained_parameters / self.total_parameters
        best = f"best validation gIoU {self.best_gIoU:.4f}" if self.best_gIoU is not None else "no validation split"
        return (
            f"run {self.run}: {self.steps} steps, {best}\n"
            f"trained {self.trained_parameters:,} of {self.total_parameters:,} parameters ({share:.1%})"
        )


def run_training(request: TrainRequest) -> TrainReport:
    """Check the options, train, report.

    Raises:
        RSRefSegError: as :func:`rsrefseg.train.entry.train`; or options that contradict each other.
    """
    _check_base(request)
    model = replace(
        model_config(request.preset),
        text_padding=cast(Padding, request.text_padding),
        dense_prompt=request.dense_prompt,
    )
    config = _train_config(request)
    out = request.out or (latest_run().path if request.resume else next_run())
    with ProgressLine(f"training {out}") as progress:
        base = _base(request, Run(out), model, progress)
        result = train(
            DataChoice(request.data, resize_masks=request.resize_masks),
            out,
            model,
            config,
            base,
            tokenizer=request.tokenizer,
            resume=request.resume,
            watcher=_watcher(progress),
        )
    best = result.position.best_giou
    return TrainReport(
        run=str(out),
        steps=result.position.step,
        best_gIoU=best if best >= 0 else None,
        trained_parameters=result.trained_parameters,
        total_parameters=result.total_parameters,
    )


def _check_base(request: TrainRequest) -> None:
    """Refuse options that name more than one base, or half of one."""
    choices = {
        "--from-scratch": request.from_scratch,
        "--base": request.base is not None,
        "--sam and --siglip": request.sam is not None or request.siglip is not None,
        "--random-weights": request.random_weights,
    }
    if len(named := [name for name, given in choices.items() if given]) > 1:
        raise BadInputError(f"{' and '.join(named)} contradict each other: give one of them")
    if (request.sam is None) != (request.siglip is None):
        raise BadInputError("--sam and --siglip go together: give both")


def _base(request: TrainRequest, run: Run, model: ModelConfig, progress: ProgressLine) -> BaseWeights:
    """The weights to start from: those of the run's record where there is one to go on with, else as asked for."""
    if request.resume and run.record_path.is_file():
        return BaseWeights.from_dict(run.read_record()["base"])
    if request.from_scratch:
        return base_weights.from_scratch()
    if request.sam is not None and request.siglip is not None:
        for note in check_public_files(model, request.sam, request.siglip):
            progress.say(f"note: {note}")
        return base_weights.from_public_files(request.sam, request.siglip)
    if request.random_weights:
        progress.say("note: the base's weights are random: for measuring only")
        return base_weights.random_weights()
    return base_weights.from_file(request.base) if request.base is not None else base_weights.shipped(request.preset)


def _train_config(request: TrainRequest) -> TrainConfig:
    given = {name: value for name, value in request.settings.items() if value is not None}
    if given["precision"] not in tuple(Precision):
        raise BadInputError(f"unknown precision '{given['precision']}': choose one of {', '.join(Precision)}")
    given["precision"] = Precision(given["precision"])
    if request.from_scratch:
        return from_scratch_config(**given)
    return TrainConfig(lora=LoraSettings(rank=request.rank, alpha=request.rank), **given)


def _watcher(progress: ProgressLine) -> Watcher:
    def on_step(report: StepReport) -> None:
        progress.update(report.step, report.total_steps, f"loss {report.loss:.3f}  {report.images_per_s:.1f} images/s")

    def on_validation(epoch: int, result: MetricsResult) -> None:
        progress.say(f"epoch {epoch + 1}: validation gIoU {result.gIoU:.4f}  cIoU {result.cIoU:.4f}")

    return Watcher(on_step, on_validation, progress.say)
