"""``rsrefseg train``: resolves options, trains a run and reports progress."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rsrefseg.engines.errors import MissingPartError
from rsrefseg.engines.system.progress import ProgressLine

from ..model.config import ModelConfig, Preset
from ..runs.run import Run, latest_run, next_run
from .config import TrainConfig
from .settings import Settings, WeightsSettings, resolve_settings

if TYPE_CHECKING:
    from ..evaluation.metrics import MetricsResult
    from ..model.lora import ParameterCounts
    from ..runs.base import BaseWeights
    from .train import TrainResult
    from .trainer import StepReport, Watcher


def run_training(
    options: Mapping[str, Any], file: str | None = None, out: Path | None = None, resume: bool = False
) -> "TrainResult | None":
    """Resolve the settings and train. PyTorch is imported after the settings are complete.

    Args:
        options: settings by field name.
        file: TOML file or name of a shipped recipe, which ``options`` override.
        out: run folder; by default the next free one under ``./runs``, or the latest run with ``resume``.
        resume: continue the run in ``out``.

    Returns:
        The result in the main process; None in all other processes.

    Raises:
        MissingPartError: the settings name no data or weights.
        RSRefSegError: see ``resolve_settings`` and ``train``.
    """
    settings = resolve_settings(file, options)
    _refuse_missing(settings, resume)
    from ..runs.base import BaseWeights
    from .processes import agreed, this_process
    from .train import train
    from .trainer import Watcher

    out = Path(agreed(str(out or (latest_run().path if resume else next_run()))))
    run, is_main, model = Run(out), this_process().is_main_process, settings.model.config()
    with ProgressLine(f"training {out}") as progress:
        if resume and run.record_path.is_file():
            settings.refuse_changes(run, model)
            base = BaseWeights.from_dict(run.read_record()["base"])
        else:
            base = _base(settings.weights, settings.model.preset, model, progress if is_main else None)
        watcher = _watcher(progress) if is_main else Watcher()
        tokenizer = settings.weights.tokenizer
        result = train(
            settings.data, out, model, settings.training, base, tokenizer=tokenizer, resume=resume, watcher=watcher
        )
    return result if is_main else None


def _refuse_missing(settings: Settings, resume: bool) -> None:
    """Raise MissingPartError if the settings lack data or weights."""
    missing = [] if settings.data.path else ["a data set (--data)"]
    weights, preset = settings.weights, settings.model.preset
    chosen = weights.from_scratch or weights.random_weights or weights.base or weights.sam
    if preset != Preset.TINY and not chosen and not resume:
        ways = f"--sam and --siglip, see `rsrefseg download {preset}`, or --base"
        missing.append(f"weights for preset '{preset}', which ships none ({ways})")
    if missing:
        raise MissingPartError(f"training still needs {' and '.join(missing)} (see --help)")


def _base(weights: WeightsSettings, preset: str, model: ModelConfig, progress: ProgressLine | None) -> "BaseWeights":
    """Return the weights that the settings name; ``progress`` reports notes."""
    from ..checkpoints.hub import find_model
    from ..checkpoints.public_files import check_public_files
    from ..checkpoints.sam_file import SAM_FILES
    from ..checkpoints.siglip_folder import SIGLIP_FILES
    from ..runs import base

    def say(line: str) -> None:
        if progress is not None:
            progress.say(line)

    if weights.from_scratch:
        return base.from_scratch()
    if weights.random_weights:
        say("note: the base's weights are random: for measuring only")
        return base.random_weights()
    if weights.sam is not None and weights.siglip is not None:
        sam, siglip = find_model(weights.sam, SAM_FILES, say), find_model(weights.siglip, SIGLIP_FILES, say)
        for note in check_public_files(model, sam, siglip):
            say(f"note: {note}")
        return base.from_public_files(sam, siglip)
    return base.from_file(weights.base) if weights.base is not None else base.shipped(preset)


def _watcher(progress: ProgressLine) -> "Watcher":
    from .processes import this_process
    from .trainer import Watcher

    def on_start(counts: "ParameterCounts", config: TrainConfig) -> None:
        progress.say(counts.render())
        processes = this_process().num_processes
        images = config.batch_size * config.gradient_accumulation * processes
        factors = f"{config.batch_size} per batch x {config.gradient_accumulation} accumulated x {processes} processes"
        factors = factors.removesuffix(" x 1 processes")
        progress.say(f"effective batch {images} images ({factors}), at most {config.phrases_per_image} phrases each")

    def on_step(report: "StepReport") -> None:
        progress.update(report.step, report.total_steps, f"loss {report.loss:.3f}  {report.images_per_s:.1f} images/s")

    def on_validation(epoch: int, result: "MetricsResult") -> None:
        progress.say(f"epoch {epoch + 1}: validation gIoU {result.gIoU:.4f}  cIoU {result.cIoU:.4f}")

    return Watcher(on_start, on_step, on_validation, progress.say)
