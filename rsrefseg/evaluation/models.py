"""Opens float32 PyTorch models for evaluation and comparison: of a run, of a file, or shipped with the package."""

from pathlib import Path
from typing import NamedTuple

from rsrefseg.engines.text import Tokenizer

from ..checkpoints.model_file import TensorFile, load_tensors, model_from
from ..model.lora import fold_lora
from ..model.model import RSRefSeg
from ..runs.base import shipped_base
from ..runs.merge import current_merge
from ..runs.run import Run, latest_run
from ..runs.tokenizer import open_tokenizer
from ..runs.trained import load_best


class TorchModel(NamedTuple):
    """A float32 model in eval mode, its tokenizer, a description of its origin, and the file of its weights."""

    model: RSRefSeg
    tokenizer: Tokenizer
    source: str
    weights: Path


def base_model() -> TorchModel:
    """Open the tiny base model that the package ships.

    Raises:
        MissingPartError: its files are missing from the installation.
    """
    return file_model(load_tensors(shipped_base()), "the shipped base")


def run_model(path: Path | None) -> TorchModel:
    """Open the model of a file or of a run: its current ``merged.safetensors``, or its best weights merged in memory.

    Args:
        path: merged model with ``tokenizer.json`` in the same folder, or a run folder; default is the latest run.

    Raises:
        BadInputError: the model or run does not exist, is unfinished or is damaged.
    """
    if path is not None and path.is_file():
        return file_model(load_tensors(path), f"model {path}")
    run = Run(path) if path is not None else latest_run()
    if (merged := current_merge(run)) is not None:
        return file_model(merged, f"run {run.path}, merged")
    model, tuner, _ = load_best(run)
    model = fold_lora(tuner).eval() if tuner is not None else model
    return TorchModel(model, open_tokenizer(run, model.config), f"run {run.path}", run.best_path)


def file_model(file: TensorFile, source: str) -> TorchModel:
    """Open the merged model in a file and the ``tokenizer.json`` in its folder.

    Raises:
        BadInputError: the model is damaged, or the tokenizer is missing or damaged.
    """
    model = model_from(file)
    stamp = ", random weights" if file.header.get("random_weights") is True else ""
    return TorchModel(model, open_tokenizer(Run(file.path.parent), model.config), f"{source}{stamp}", file.path)
