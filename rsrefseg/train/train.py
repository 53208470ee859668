"""Trains a model from resolved settings into a run folder."""

import shutil
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec

from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.system.files import atomic_write_bytes, unwritable

from ..checkpoints.tokenizer_file import tokenizer_bytes
from ..data.samples import group_by_image
from ..model.config import ModelConfig
from ..model.lora import ParameterCounts, count_parameters
from ..runs.base import BaseWeights
from ..runs.reference_inputs import pick_reference_inputs, save_reference_inputs
from ..runs.run import Run, versions
from ..runs.tokenizer import open_tokenizer, tokenizer_for
from ..runs.trained import prepare_model
from .compiling import check_compiler
from .config import TrainConfig
from .data import TrainingData, check_phrases, read_samples, samples_digest
from .processes import refuse_sharding, this_process
from .settings import RECORDED_DATA, DataSettings
from .state import Position
from .trainer import Trainer, Watcher

_MIN_FREE_MIB = 64


@dataclass(frozen=True, slots=True)
class TrainResult:
    """Result of a training."""

    run: Run
    position: Position
    parameters: ParameterCounts

    @property
    def best_giou(self) -> float | None:
        """Best validation gIoU; None without a validation split."""
        return self.position.best_giou if self.position.best_giou >= 0 else None

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON-serialisable dict."""
        counts = {"trained": self.parameters.trained, **asdict(self.parameters)}
        del counts["towers"]
        report = {"run": str(self.run.path), "steps": self.position.step, "best_gIoU": self.best_giou}
        return report | {f"{part}_parameters": count for part, count in counts.items()}

    def render(self) -> str:
        """Return the result as two lines of text."""
        found = "no validation split" if self.best_giou is None else f"best validation gIoU {self.best_giou:.4f}"
        trained, total = self.parameters.trained, self.parameters.total
        share = f"trained {trained:,} of {total:,} parameters ({trained / total:.1%})"
        return f"run {self.run.path}: {self.position.step} steps, {found}\n{share}"


def train(
    data: DataSettings,
    out: Path,
    model_config: ModelConfig,
    config: TrainConfig,
    base: BaseWeights,
    *,
    tokenizer: Path | None = None,
    resume: bool = False,
    watcher: Watcher = Watcher(),  # noqa: B008 (frozen)
) -> TrainResult:
    """Train into the run folder ``out``.

    With ``resume``, an existing run continues from its last checkpoint, with the settings of its record and the same
    number of processes. A folder without a record starts a new run.

    Raises:
        BadInputError: the data, base or folder cannot be used, or ``out`` already contains a run and ``resume`` is not
            set.
        MissingPartError: ``config.compile`` is set and there is no compiler.
        RSRefSegError: the disk is full, the device runs out of memory, or the loss is no longer finite.
    """
    refuse_sharding()
    _check_output(out)
    run, processes = Run(out), this_process()
    is_main = processes.is_main_process
    with run.held() if is_main else nullcontext():
        started = _is_started(run, resume)
        processes.wait_for_everyone()  # all processes check before one writes
        if started:
            record = run.read_training_record()
            if (before := record.get("processes")) not in (None, processes.num_processes):
                # A position counts the batches of all processes.
                raise BadInputError(
                    f"'{out}' was started with {before} processes, not {processes.num_processes}: continue with "
                    f"{before} (accelerate launch --num_processes {before}), or give another --out"
                )
            model_config, config = ModelConfig.from_dict(record["model"]), TrainConfig.from_dict(record["train"])
            base = BaseWeights.from_dict(record["base"])
            data = _recorded(data, record["data"], out)
            if tokenizer is not None and tokenizer_bytes(tokenizer, model_config) != run.tokenizer_path.read_bytes():
                raise BadInputError(f"'{out}' was started with another tokenizer than '{tokenizer}': leave it out")
        else:
            model_config = base.adapted(model_config)
        if config.compile:
            check_compiler(processes.device)
        parts, validation = read_samples(data, watcher.on_note)
        samples = tuple(chain(*parts))
        contents = {"sha256": samples_digest([*samples, *validation]), "samples": len(samples)}
        if started and any(record["data"].get(name) != value for name, value in contents.items()):
            raise BadInputError(f"{_names(data)} is not the data set of the run '{out}': its annotations differ")
        if is_main and not started:
            phrases = [sample.phrase for sample in samples]
            atomic_write_bytes(run.tokenizer_path, tokenizer_for(base, tokenizer, model_config, phrases))
            reference = pick_reference_inputs(validation or samples, model_config)
            save_reference_inputs(run.reference_inputs_path, reference)
        processes.wait_for_everyone()
        reader = open_tokenizer(run, model_config)
        grouped = [group_by_image(part) for part in parts]
        shares = tuple(zip(map(len, grouped), data.shares, strict=True))
        training_data = TrainingData(tuple(chain(*grouped)), validation, reader, data.resize_masks, shares)
        if warnings := check_phrases([*samples, *validation], reader):
            watcher.on_note(f"phrases not read in full: {len(warnings)}; the first: {warnings[0]}")
        model, _ = prepare_model(base, model_config, config.lora, config.seed)
        parameters = count_parameters(model)
        if is_main and not started:
            # Written before any weights: a folder with weights but no record is never a run.
            run.write_record(
                {
                    "model": model_config.to_dict(),
                    "train": config.to_dict(),
                    "base": base.to_dict(),
                    "data": {
                        "path": [str(path.resolve()) for path in data.path],
                        **data.record(),
                        **contents,
                    },
                    "parameters": {"trained": parameters.trained, "total": parameters.total},
                    "processes": processes.num_processes,
                    "versions": versions(),
                }
            )
        if is_main:
            watcher.on_start(parameters, config)
        position = Trainer(model, config, training_data, run, watcher).train(resume)
        return TrainResult(run, position, parameters)


def _recorded(data: DataSettings, record: Mapping[str, Any], out: Path) -> DataSettings:
    """Return the settings of the data sets of a run, with the paths of ``data``.

    Raises:
        BadInputError: the run has another number of data sets.
    """
    kept = {name: record[name] for name in RECORDED_DATA if name in record}
    share = tuple(record.get("share", (1.0,)))
    if len(share) != len(data.path):
        raise BadInputError(f"the run '{out}' has {len(share)} data sets, not {len(data.path)}: name them in its order")
    return msgspec.structs.replace(data, share=share, **kept)


def _names(data: DataSettings) -> str:
    return ", ".join(f"'{path}'" for path in data.path)


def _check_output(path: Path) -> None:
    """Raise an error if the folder cannot be written or its disk is nearly full."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        free_mib = shutil.disk_usage(path).free / 2**20
    except OSError as error:
        raise unwritable(path, error) from error
    if free_mib < _MIN_FREE_MIB:
        raise BadInputError(f"only {free_mib:.0f} MiB free on the disk of '{path}': {_MIN_FREE_MIB} MiB are needed")


def _is_started(run: Run, resume: bool) -> bool:
    """Return whether the folder contains a run to continue.

    Raises:
        BadInputError: there is a run and ``resume`` is not set, or there are weights without a record.
    """
    if run.record_path.exists():
        if not resume:
            raise BadInputError(f"'{run.path}' already holds a run: add --resume to continue it, or give another --out")
        return True
    for path in (run.last_path, run.best_path, run.merged_path):
        if path.exists():
            raise BadInputError(f"'{run.path}' has {path.name} but no {run.record_path.name}: give another --out")
    return False
