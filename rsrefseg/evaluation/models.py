"""Float32 PyTorch models to evaluate and compare with: of a run, of a file, or of the package."""

from pathlib import Path
from typing import NamedTuple

from rsrefseg.engines.text import Tokenizer

from ..checkpoints.model_file import load_tensors, model_from
from ..model.lora import fold_lora
from ..model.model import RSRefSeg
from ..runs.base import shipped_base
from ..runs.merge import current_merge
from ..runs.run import Run, latest_run
from ..runs.tokenizer import open_tokenizer
from ..runs.trained import load_best


class TorchModel(NamedTuple):
    """A float32 model in eval mode, its tokenizer, where it came from in words, and the file of its weights."""

    model: RSRefSeg
    tokenizer: Tokenizer
    source: str
    weights: Path


def base_model() -> TorchModel:
    """The shipped tiny base, before any training.

    Raises:
        MissingPartError: the package was installed without it.
    """
    return file_model(shipped_base(), "the shipped base")


def run_model(path: Path | None) -> TorchModel:
    """The model of a file, or of a run: ``merged.safetensors`` where it is current, else with its adapters folded.

    Args:
        path: a merged model with its ``tokenizer.json`` beside it, or a run's folder; default is the latest run.

    Raises:
        BadInputError: there is no such model or run, or it is unfinished or damaged.
    """
    if path is not None and path.is_file():
        return file_model(path, f"model {path}")
    run = Run(path) if path is not None else latest_run()
    if current_merge(run) is not None:
        return file_model(run.merged_path, f"run {run.path}, merged")
    model, tuner, _ = load_best(run)
    model = fold_lora(tuner).eval() if tuner is not None else model
    return TorchModel(model, open_tokenizer(run, model.config), f"run {run.path}", run.best_path)


def file_model(path: Path, source: str) -> TorchModel:
    """A merged model with the tokenizer beside it.

    Raises:
        BadInputError: one of them is missing or damaged.
    """
    file = load_tensors(path)
    model = model_from(file)
    stamp = ", random weights" if file.header.get("random_weights") is True else ""
    return TorchModel(model, open_tokenizer(Run(path.parent), model.config), f"{source}{stamp}", path)
