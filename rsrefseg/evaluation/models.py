"""The PyTorch side of a comparison: the model of a run, of the package, or the one a bundle was exported from."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rsrefseg.engines.errors import BadInputError, MissingPartError
from rsrefseg.engines.system.files import sha256_file

if TYPE_CHECKING:
    from rsrefseg.engines.text import Tokenizer

    from ..model.model import RSRefSeg
    from ..train.run import Run

_SHOWN_DIGITS = 12


class TorchModel(NamedTuple):
    """A float32 model in eval mode, its tokenizer, and where it came from in words."""

    model: "RSRefSeg"
    tokenizer: "Tokenizer"
    source: str


def base_model() -> TorchModel:
    """The shipped tiny base, before any training.

    Raises:
        MissingPartError: the package was installed without it.
    """
    from rsrefseg.engines.text import Tokenizer

    from ..checkpoints.model_file import load_model
    from ..train.base import shipped_base, shipped_tokenizer

    model = load_model(shipped_base())
    siglip = model.config.siglip
    tokenizer = Tokenizer(shipped_tokenizer(), siglip.text_length, model.config.text_padding, siglip.pad_token_id)
    return TorchModel(model, tokenizer, "the shipped base")


def run_model(path: Path | None) -> TorchModel:
    """The trained model of a run: ``merged.safetensors`` where that is the latest, else its adapters folded here.

    Args:
        path: the run's folder; default is the latest run.

    Raises:
        BadInputError: there is no such run, or it is unfinished or damaged.
    """
    from ..checkpoints.model_file import model_from
    from ..train.merge import current_merge
    from ..train.run import Run, latest_run
    from ..train.setup import open_tokenizer

    run = Run(path) if path is not None else latest_run()
    if (merged := current_merge(run)) is not None:
        model = model_from(merged)
        stamp = ", random weights" if merged.header.get("random_weights") is True else ""
        return TorchModel(model, open_tokenizer(run, model.config), f"run {run.path}, merged{stamp}")
    model = _folded(run)
    return TorchModel(model, open_tokenizer(run, model.config), f"run {run.path}")


def exported_run(bundle: Path, checkpoint_sha256: str | None, path: Path | None) -> "Run":
    """The run whose merged model is the very one a bundle was exported from. Looks at files only.

    Args:
        bundle: the bundle's folder, for the message.
        checkpoint_sha256: digest of the model it was exported from, as its manifest has it; None for random weights.
        path: the run's folder; default is the latest run.

    Raises:
        MissingPartError: this machine has no PyTorch to run it with.
        BadInputError: there is no such run, it was not merged, or its merged model is another one.
    """
    from ..train.run import Run, latest_run

    if find_spec("torch") is None:
        raise MissingPartError("PyTorch is not installed: pip install 'rsrefseg[train]'")
    run = Run(path) if path is not None else latest_run()
    if not run.merged_path.is_file():
        raise BadInputError(f"'{run.path}' has no merged model: run `rsrefseg merge {run.path}`")
    found, wanted = sha256_file(run.merged_path), checkpoint_sha256
    if found != wanted:
        exported = f"the model {wanted[:_SHOWN_DIGITS]}" if wanted else "random weights"
        raise BadInputError(
            f"the bundle '{bundle}' was exported from {exported}, '{run.merged_path}' is {found[:_SHOWN_DIGITS]}: "
            "name the right run with --run, or export again"
        )
    return run


def merged_model(run: "Run") -> TorchModel:
    """The merged model of a run.

    Raises:
        BadInputError: it or the run's tokenizer is missing or damaged.
    """
    from ..checkpoints.model_file import load_model
    from ..train.setup import open_tokenizer

    model = load_model(run.merged_path)
    return TorchModel(model, open_tokenizer(run, model.config), f"run {run.path}, merged")


def _folded(run: "Run") -> "RSRefSeg":
    from ..checkpoints.model_file import load_tensors
    from ..model.config import ModelConfig
    from ..model.lora import fold_lora
    from ..train.base import BaseWeights
    from ..train.config import TrainConfig
    from ..train.setup import prepare_model
    from ..train.state import load_trained_state

    record = run.read_record()
    if not run.best_path.exists():
        raise BadInputError(f"'{run.path}' has no trained weights yet: go on with `rsrefseg train --resume`")
    config = ModelConfig.from_dict(record["model"])
    model, tuner = prepare_model(BaseWeights.from_dict(record["base"]), config, TrainConfig.from_dict(record["train"]))
    load_trained_state(model, load_tensors(run.best_path).tensors, run.best_path)
    return (fold_lora(tuner) if tuner is not None else model).eval()
