"""Float32 PyTorch models to evaluate and compare with: of a run, or of the package."""

from pathlib import Path
from typing import NamedTuple

from rsrefseg.engines.text import Tokenizer

from ..checkpoints.model_file import load_model, model_from
from ..model.lora import fold_lora
from ..model.model import RSRefSeg
from ..runs.base import shipped_base, shipped_tokenizer
from ..runs.merge import current_merge
from ..runs.run import Run, latest_run
from ..runs.tokenizer import open_tokenizer
from ..runs.trained import load_best


class TorchModel(NamedTuple):
    """A float32 model in eval mode, its tokenizer, and where it came from in words."""

    model: RSRefSeg
    tokenizer: Tokenizer
    source: str


def base_model() -> TorchModel:
    """The shipped tiny base, before any training.

    Raises:
        MissingPartError: the package was installed without it.
    """
    model = load_model(shipped_base())
    siglip = model.config.siglip
    tokenizer = Tokenizer(shipped_tokenizer(), siglip.text_length, model.config.text_padding, siglip.pad_token_id)
    return TorchModel(model, tokenizer, "the shipped base")


def run_model(path: Path | None) -> TorchModel:
    """The trained model of a run: ``merged.safetensors`` where it is current, else the run's adapters are folded.

    Args:
        path: the run's folder; default is the latest run.

    Raises:
        BadInputError: there is no such run, or it is unfinished or damaged.
    """
    run = Run(path) if path is not None else latest_run()
    if (merged := current_merge(run)) is not None:
        model = model_from(merged)
        stamp = ", random weights" if merged.header.get("random_weights") is True else ""
        return TorchModel(model, open_tokenizer(run, model.config), f"run {run.path}, merged{stamp}")
    model, tuner, _ = load_best(run)
    model = fold_lora(tuner).eval() if tuner is not None else model
    return TorchModel(model, open_tokenizer(run, model.config), f"run {run.path}")


def merged_model(run: Run) -> TorchModel:
    """The merged model of a run.

    Raises:
        BadInputError: it or the run's tokenizer is missing or damaged.
    """
    model = load_model(run.merged_path)
    return TorchModel(model, open_tokenizer(run, model.config), f"run {run.path}, merged")
