"""``rsrefseg merge``: merges trained weights and base of a run into one model and checks that outputs stay equal."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from rsrefseg.engines.errors import CheckFailedError
from rsrefseg.engines.records import Record
from rsrefseg.engines.system.tables import Table

from ..checkpoints.model_file import TensorFile, digest, load_tensors, save_model
from ..model.lora import fold_lora
from ..model.model import RSRefSeg
from ..model.stages import run_stages
from .base import BaseWeights
from .reference_inputs import load_reference_inputs
from .run import Run
from .tokenizer import open_tokenizer
from .trained import load_best

# Merging only changes the order of float32 additions: a few hundred roundings of 6e-8 through the towers.
TOLERANCE = 1e-4
# In float16, every weight is rounded to 11 significant bits, and the errors add up through the towers.
HALF_TOLERANCE = 2e-2


class OutputDifference(Record, frozen=True):
    """Largest absolute difference of one stage output, and as a fraction (``relative``) of its maximum."""

    name: str
    max_abs: float
    relative: float


class MergeResult(Record, frozen=True):
    """Result of a merge: path of the model, number of merged adapters, and differences of the outputs."""

    path: Path
    adapters: int
    differences: tuple[OutputDifference, ...]
    sha256: str

    def render(self) -> Any:
        """Return the differences as a table for a terminal."""
        columns = ("output", "max abs difference", "of its abs maximum")
        table = Table(f"{self.path}: {self.adapters} adapters folded", columns)
        for row in self.differences:
            table.add(row.name, f"{row.max_abs:.2e}", f"{row.relative:.2e}")
        return table.to_rich()


def merge(run: Run, *, half: bool = False) -> MergeResult:
    """Merge a run's best weights and write ``merged.safetensors`` into the run folder.

    All five stages run on the run's reference inputs, once with the adapters and once with the stored weights. The
    header of the file records the differences.

    Args:
        run: a trained run.
        half: store float16 instead of float32, which halves the size.

    Raises:
        BadInputError: the run is unfinished or damaged, or its base is missing or differs.
        CheckFailedError: an output changes by more than ``TOLERANCE`` (``HALF_TOLERANCE``) of its absolute
            maximum. Nothing is written.
    """
    model, tuner, best = load_best(run)
    base = BaseWeights.from_dict(run.read_record()["base"])
    tokenizer = open_tokenizer(run, model.config)
    inputs = [entry.tensors(tokenizer) for entry in load_reference_inputs(run.reference_inputs_path)]
    before = [run_stages(model, **tensors) for tensors in inputs]
    adapters = sum(name.endswith("lora_A.default.weight") for name, _ in model.named_parameters())
    merged = fold_lora(tuner).eval() if tuner is not None else model
    if half:
        _round_to_half(merged)
    after = [run_stages(merged, **tensors) for tensors in inputs]
    differences = compare_outputs(before, after)
    tolerance = HALF_TOLERANCE if half else TOLERANCE
    for difference in differences:
        if not difference.relative <= tolerance:
            raise CheckFailedError(
                f"merging changed '{difference.name}' by {difference.relative:.1e} of its maximum, more than "
                f"{tolerance:.0e}: nothing was written"
            )
    save_model(
        run.merged_path,
        merged,
        torch.float16 if half else None,
        merge={"adapters": adapters, "differences": [difference.to_dict() for difference in differences]},
        source={"run_best_sha256": digest(run.best_path), "base": base.to_dict(), "step": best.header["step"]},
        random_weights=base.random_weights,
    )
    return MergeResult(run.merged_path, adapters, differences, digest(run.merged_path))


def current_merge(run: Run) -> TensorFile | None:
    """Return the run's merged model; None if there is none or the best weights are newer.

    Raises:
        BadInputError: the file is damaged.
    """
    if not run.merged_path.exists():
        return None
    merged = load_tensors(run.merged_path)
    merged_from = merged.header.get("source", {}).get("run_best_sha256")
    return merged if not run.best_path.exists() or merged_from == digest(run.best_path) else None


def _round_to_half(model: RSRefSeg) -> None:
    """Round every floating-point tensor to float16 precision in place."""
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(tensor.half())


def compare_outputs(before: list[dict[str, Tensor]], after: list[dict[str, Tensor]]) -> tuple[OutputDifference, ...]:
    """Return the largest difference of each output over all inputs; NaN counts as infinite."""
    differences = []
    for name in before[0]:
        pairs = [(left[name].double(), right[name].double()) for left, right in zip(before, after, strict=True)]
        worst = max(float((left - right).abs().max().nan_to_num(torch.inf)) for left, right in pairs)
        scale = max(float(left.abs().max()) for left, _ in pairs)
        differences.append(OutputDifference(name, worst, worst / scale if scale else worst))
    return tuple(differences)
