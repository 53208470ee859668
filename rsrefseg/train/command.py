"""``rsrefseg train``: from options to a run, with progress, and what it came to.

PyTorch is loaded once the options are known to be whole.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from rsrefseg.engines.errors import BadInputError, MissingPartError
from rsrefseg.engines.system.progress import ProgressLine
from rsrefseg.engines.text import Padding

from ..model.config import ModelConfig, Preset, model_config
from ..runs.run import Run, latest_run, next_run
from .config import TrainConfig
from .request import TrainRequest

if TYPE_CHECKING:
    from ..evaluation.metrics import MetricsResult
    from ..model.lora import ParameterCounts
    from ..runs.base import BaseWeights
    from .trainer import StepReport, Watcher


@dataclass(frozen=True, slots=True)
class TrainReport:
    """What ``train`` prints at its end."""

    run: str
    steps: int
    best_gIoU: float | None  # noqa: N815 (the field's spelling)
    trained_parameters: int
    total_parameters: int
    lora_parameters: int
    attn_prompter_parameters: int
    sam_decoder_parameters: int

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


def run_training(request: TrainRequest) -> TrainReport | None:
    """Check the options, train, report.

    Returns:
        What training came to; None in all processes of a training but the main one.

    Raises:
        RSRefSegError: as ``train``; or options that contradict each other, or lack a part.
    """
    request = request.filled()
    model, config = _model(request), request.train_config()
    data = _refuse_missing(request)
    from .entry import train
    from .processes import agreed, this_process
    from .setup import DataChoice
    from .trainer import Watcher

    out = Path(agreed(str(request.out or (latest_run().path if request.resume else next_run()))))
    run, is_main = Run(out), this_process().is_main_process
    if request.resume and run.record_path.is_file():
        request.refuse_other_settings(run, model)
    with ProgressLine(f"training {out}") as progress:
        base = _base(request, run, model, progress)
        result = train(
            DataChoice(data, resize_masks=bool(request.resize_masks), images=request.images),
            out,
            model,
            config,
            base,
            tokenizer=request.tokenizer,
            resume=request.resume,
            watcher=_watcher(progress, config) if is_main else Watcher(),
        )
    best, counts = result.position.best_giou, result.parameters
    if not is_main:
        return None
    return TrainReport(
        run=str(out),
        steps=result.position.step,
        best_gIoU=best if best >= 0 else None,
        trained_parameters=counts.trained,
        total_parameters=counts.total,
        lora_parameters=counts.lora,
        attn_prompter_parameters=counts.attn_prompter,
        sam_decoder_parameters=counts.sam_decoder,
    )


def _refuse_missing(request: TrainRequest) -> Path:
    """Say all at once what is still to be given, before anything is read; else give the data set."""
    missing = []
    if request.data is None:
        missing.append("a data set (--data)")
    if (request.sam is None) != (request.siglip is None):
        raise BadInputError("--sam and --siglip go together: give both")
    brought = (request.base, request.sam, request.siglip)
    preset = request.preset or Preset.TINY
    made = request.resume or request.from_scratch or request.random_weights
    if preset != Preset.TINY and not made and all(path is None for path in brought):
        missing.append(f"weights for preset '{preset}', which brings none (--sam and --siglip, or --base)")
    if request.data is None or missing:
        raise MissingPartError(f"training still needs {' and '.join(missing)} (see --help)")
    return request.data


def _model(request: TrainRequest) -> ModelConfig:
    """The model asked for; the preset is tiny by default."""
    config = model_config(request.preset if request.preset is not None else Preset.TINY)
    if request.text_padding is not None:
        config = replace(config, text_padding=cast(Padding, request.text_padding))
    return config if request.dense_prompt is None else replace(config, dense_prompt=request.dense_prompt)


def _base(request: TrainRequest, run: Run, model: ModelConfig, progress: ProgressLine) -> "BaseWeights":
    """The weights to start from: those of the run's record where there is one to go on with, else as asked for."""
    from ..checkpoints.hub import folder_of
    from ..checkpoints.public_files import check_public_files
    from ..checkpoints.sam_file import SAM_FILES
    from ..checkpoints.siglip_folder import SIGLIP_FILES
    from ..runs import base as base_weights
    from .processes import this_process

    say = progress.say if this_process().is_main_process else _nothing
    if request.resume and run.record_path.is_file():
        return base_weights.BaseWeights.from_dict(run.read_record()["base"])
    if request.from_scratch:
        return base_weights.from_scratch()
    if request.sam is not None and request.siglip is not None:
        sam, siglip = folder_of(request.sam, SAM_FILES, say), folder_of(request.siglip, SIGLIP_FILES, say)
        for note in check_public_files(model, sam, siglip):
            say(f"note: {note}")
        return base_weights.from_public_files(sam, siglip)
    if request.random_weights:
        say("note: the base's weights are random: for measuring only")
        return base_weights.random_weights()
    preset = request.preset or Preset.TINY
    return base_weights.from_file(request.base) if request.base is not None else base_weights.shipped(preset)


def _nothing(line: str) -> None:
    """Stands for the line of progress in all processes but one."""


def _watcher(progress: ProgressLine, config: TrainConfig) -> "Watcher":
    from .processes import this_process
    from .trainer import Watcher

    def on_start(counts: "ParameterCounts") -> None:
        progress.say(counts.render())
        processes = this_process().num_processes
        images = config.batch_size * config.gradient_accumulation * processes
        made = f"{config.batch_size} at once x {config.gradient_accumulation} accumulated x {processes} processes"
        made = made.removesuffix(" x 1 processes")
        progress.say(f"effective batch {images} images ({made}), {config.phrases_per_image} phrases each at most")

    def on_step(report: "StepReport") -> None:
        progress.update(report.step, report.total_steps, f"loss {report.loss:.3f}  {report.images_per_s:.1f} images/s")

    def on_validation(epoch: int, result: "MetricsResult") -> None:
        progress.say(f"epoch {epoch + 1}: validation gIoU {result.gIoU:.4f}  cIoU {result.cIoU:.4f}")

    return Watcher(on_start, on_step, on_validation, progress.say)
