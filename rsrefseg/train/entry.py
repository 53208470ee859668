"""``train``: from arguments to a finished run folder."""

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.system.files import atomic_write_bytes

from ..data.samples import group_by_image
from ..model.config import ModelConfig
from ..model.lora import ParameterCounts, count_parameters
from ..runs.base import BaseWeights
from ..runs.reference_inputs import pick_reference_inputs, save_reference_inputs
from ..runs.run import Run, versions
from ..runs.tokenizer import open_tokenizer, tokenizer_for
from ..runs.trained import prepare_model
from .allocator import keep_freed_memory
from .config import TrainConfig
from .processes import this_process
from .setup import (
    DataChoice,
    TrainingData,
    check_output,
    check_phrases,
    read_samples,
    samples_digest,
)
from .sharding import sharding_wanted
from .state import Position
from .trainer import Trainer, Watcher


@dataclass(frozen=True, slots=True)
class TrainResult:
    """What a training run came to."""

    run: Run
    position: Position
    parameters: ParameterCounts

    @property
    def trained_parameters(self) -> int:
        """Numbers that training changed."""
        return self.parameters.trained

    @property
    def total_parameters(self) -> int:
        """Numbers of the model, adapters included."""
        return self.parameters.total


def train(
    data: DataChoice,
    out: Path,
    model_config: ModelConfig,
    config: TrainConfig,
    base: BaseWeights,
    *,
    tokenizer: Path | None = None,
    resume: bool = False,
    watcher: Watcher = Watcher(),  # noqa: B008 (frozen)
) -> TrainResult:
    """Train into the folder ``out``.

    With ``resume`` an existing run goes on exactly where its last checkpoint stands, under the settings of its own
    record and on as many processes as it had; a folder without a record (its process was killed before the first
    write) starts clean.

    Raises:
        BadInputError: the data, base or folder cannot be used, or ``out`` already holds a run and ``resume`` is not
            set.
        RSRefSegError: the disk is full, the memory too small, or the loss is no longer finite.
    """
    sharding_wanted(config.precision)
    check_output(out)
    run = Run(out)
    processes = this_process()
    with run.held() if processes.is_main_process else nullcontext():
        started = _is_started(run, resume)
        processes.wait_for_everyone()  # all of them look before one writes
        keep_freed_memory()
        if started:
            record = run.read_record()
            _refuse_other_number(run, record.get("processes"), processes.num_processes)
            model_config, config = ModelConfig.from_dict(record["model"]), TrainConfig.from_dict(record["train"])
            base = BaseWeights.from_dict(record["base"])
            data = replace(data, resize_masks=record["data"].get("resize_masks", data.resize_masks))
        samples, validation = read_samples(data)
        contents = {"sha256": samples_digest([*samples, *validation]), "samples": len(samples)}
        if started:
            if any(record["data"].get(name) != value for name, value in contents.items()):
                raise BadInputError(f"'{data.path}' is not the data '{out}' was started on: its annotations differ")
        elif processes.is_main_process:
            phrases = [sample.phrase for sample in samples]
            atomic_write_bytes(run.tokenizer_path, tokenizer_for(base, tokenizer, model_config, phrases))
            reference = pick_reference_inputs(validation or samples, model_config.sam.image_size)
            save_reference_inputs(run.reference_inputs_path, reference)
        processes.wait_for_everyone()
        training_data = TrainingData(
            group_by_image(samples),
            validation,
            open_tokenizer(run, model_config),
            "resize" if data.resize_masks else "refuse",
        )
        if warnings := check_phrases([*samples, *validation], training_data.tokenizer):
            watcher.on_note(f"{len(warnings)} phrases are not read in full; the first: {warnings[0]}")
        model, _ = prepare_model(base, model_config, config.lora, config.seed)
        parameters = count_parameters(model)
        if not started and processes.is_main_process:
            run.write_record(
                {
                    "model": model_config.to_dict(),
                    "train": config.to_dict(),
                    "base": base.to_dict(),
                    "data": {"path": str(data.path.resolve()), "resize_masks": data.resize_masks, **contents},
                    "parameters": {"trained": parameters.trained, "total": parameters.total},
                    "processes": processes.num_processes,
                    "versions": versions(),
                }
            )
        if processes.is_main_process:
            watcher.on_start(parameters)
        position = Trainer(model, config, training_data, run, watcher).train(resume)
        return TrainResult(run, position, parameters)


def _refuse_other_number(run: Run, before: int | None, now: int) -> None:
    """Places in training count what all processes take together: another number of them is another training."""
    if before not in (None, now):
        raise BadInputError(
            f"'{run.path}' was started on {before} processes, these are {now}: go on with {before} "
            f"(accelerate launch --num_processes {before}), or give another --out"
        )


def _is_started(run: Run, resume: bool) -> bool:
    """Whether there is a run to go on with.

    Raises:
        BadInputError: there is one, but nobody asked to go on with it; or there are remains of one.
    """
    if run.record_path.exists():
        if not resume:
            raise BadInputError(
                f"'{run.path}' already holds a run: add --resume to go on with it, or give another --out"
            )
        return True
    # The record is written first: weights without it are another run's, and resuming would take them for this one's.
    for path in (run.last_path, run.best_path, run.merged_path):
        if path.exists():
            raise BadInputError(
                f"'{run.path}' holds {path.name} of a run without its {run.record_path.name}: give another --out"
            )
    return False
