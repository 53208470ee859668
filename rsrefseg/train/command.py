"""``rsrefseg train``: resolves options, trains a run and reports progress."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from rsrefseg.engines.errors import BadInputError, MissingPartError
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

_SECOND_WEIGHTS = (
    "`rsrefseg download rsrefseg2-rrsisd`, `rsrefseg convert` it, then --base RUN/merged.safetensors, or --from-scratch"
)


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
        BadInputError: the preset does not take these weights.
        RSRefSegError: see ``resolve_settings`` and ``train``.
    """
    settings = resolve_settings(file, options)
    _refuse_missing(settings, resume)
    from ..runs.base import BaseKind, BaseWeights
    from .processes import agreed, this_process
    from .train import train
    from .trainer import Watcher

    out = Path(agreed(str(out or (latest_run().path if resume else next_run()))))
    run, is_main = Run(out), this_process().is_main_process
    is_preset_named = "preset" in settings.given.get("model", {})
    with ProgressLine(f"training {out}") as progress:
        if resume and run.record_path.is_file():
            record, model = run.read_training_record(), settings.model.config()
            base = BaseWeights.from_dict(record["base"])
            if base.kind in (BaseKind.FILE, BaseKind.FILES) and not is_preset_named:
                model = replace(model, preset=record["model"].get("preset"))  # the sizes are those of the files
            _refuse_other_weights(settings.weights, base, run)
            settings.refuse_changes(run, model)
        else:
            base, model = _base(settings, is_preset_named, progress if is_main else None)
        watcher = _watcher(progress) if is_main else Watcher()
        tokenizer = settings.weights.tokenizer
        result = train(
            settings.data, out, model, settings.training, base, tokenizer=tokenizer, resume=resume, watcher=watcher
        )
    return result if is_main else None


def _refuse_other_weights(given: WeightsSettings, base: "BaseWeights", run: Run) -> None:
    """Check that the given weights, if any, are of the kind, and ``--base`` is the file, that a run was started with.

    Raises:
        BadInputError: they differ.
    """
    from ..runs.base import BaseKind

    kinds = {
        BaseKind.SCRATCH: given.from_scratch,
        BaseKind.RANDOM: given.random_weights,
        BaseKind.FILE: given.base is not None,
        BaseKind.FILES: given.sam is not None,
    }
    kind = next((kind for kind, is_given in kinds.items() if is_given), base.kind)
    is_other_file = given.base is not None and given.base.resolve() != Path(base.path or "").resolve()
    if kind is not base.kind or is_other_file:
        raise BadInputError(
            f"'{run.path}' was started with other weights ({base.kind.value}): leave them out to continue the run, or "
            "give another --out"
        )


def _refuse_missing(settings: Settings, resume: bool) -> None:
    """Raise MissingPartError if the settings lack data or weights, BadInputError if the preset has no use for them."""
    second = settings.model.config().rsrefseg2 is not None
    if second and settings.weights.sam is not None:
        raise BadInputError(f"RSRefSeg 2 cannot start from --sam and --siglip: {_SECOND_WEIGHTS}")
    missing = [] if settings.data.path else ["a data set (--data)"]
    weights, preset = settings.weights, settings.model.preset
    chosen = weights.from_scratch or weights.random_weights or weights.base or weights.sam
    if preset != Preset.TINY and not chosen and not resume:
        ways = _SECOND_WEIGHTS if second else f"--sam and --siglip, see `rsrefseg download {preset}`, or --base"
        missing.append(f"weights for preset '{preset}', which ships none ({ways})")
    if missing:
        raise MissingPartError(f"training still needs {' and '.join(missing)} (see --help)")


def _base(
    settings: Settings, is_preset_named: bool, progress: ProgressLine | None
) -> tuple["BaseWeights", ModelConfig]:
    """Return the weights that the settings name and the model to train; ``progress`` reports notes.

    Sizes and preprocessing are those of the weights' files, unless the user names a preset or a profile.
    """
    from ..checkpoints.hub import find_model
    from ..checkpoints.model_file import read_config
    from ..checkpoints.public_files import check_public_files, fit_config
    from ..checkpoints.sam_file import SAM_FILES
    from ..checkpoints.siglip_folder import SIGLIP_FILES, SIGLIP_SETTINGS
    from ..runs import base

    def say(line: str) -> None:
        if progress is not None:
            progress.say(line)

    def prepared(model: ModelConfig) -> ModelConfig:
        return replace(model, preprocessing=settings.preprocessing.of(model.preprocessing))

    weights, model = settings.weights, settings.model.config()
    if weights.from_scratch:
        return base.from_scratch(), prepared(model)
    if weights.random_weights:
        say("note: the base's weights are random: for measuring only")
        return base.random_weights(), prepared(model)
    if weights.sam is not None and weights.siglip is not None:
        sam = find_model(weights.sam, SAM_FILES, say)
        siglip = find_model(weights.siglip, SIGLIP_FILES, say, SIGLIP_SETTINGS)
        model = prepared(fit_config(model, sam, siglip, keep_sizes=is_preset_named))
        for note in check_public_files(model, sam, siglip):
            say(f"note: {note}")
        return base.from_public_files(sam, siglip), model
    if weights.base is not None:
        chosen, found = base.from_file(weights.base), read_config(weights.base)
        given = settings.given.get("model", {})
        of = {name: model if name in given else found for name in ("text_padding", "dense_prompt")}
        return chosen, prepared(
            replace(
                model if is_preset_named else found,
                preprocessing=found.preprocessing,
                text_padding=of["text_padding"].text_padding,
                dense_prompt=of["dense_prompt"].dense_prompt,
            )
        )
    return base.shipped(settings.model.preset), prepared(model)


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
