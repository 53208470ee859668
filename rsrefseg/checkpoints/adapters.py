"""Folding LoRA adapters that are still beside their weights in somebody's checkpoint."""

import re
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from rsrefseg.engines.errors import BadInputError

from .tensor_files import FLOAT_DTYPES, State

_ADAPTER = re.compile(r"^(?P<module>.+)\.lora_(?P<part>[AB])(\.(?P<adapter>\w+))?\.weight$")


@dataclass(frozen=True, slots=True)
class FoldedState:
    """A state dict without adapters, and how many were folded into it."""

    tensors: State
    adapters: int


def fold_adapters(state: State, alpha: float | None, path: Path) -> FoldedState:
    """Add every ``lora_B @ lora_A`` to its weight (Hu et al. 2021, section 4.1), scaled by alpha / rank.

    Linear layers have A (r, in) and B (out, r); convolutions A (r, in, h, w) and B (out, r, 1, 1), the same product.

    Args:
        state: tensors, the adapted weights under ``<module>.weight``.
        alpha: of the training; None where it equalled the rank, as published.
        path: the file, for messages.

    Raises:
        BadInputError: an adapter lacks its other half or its weight, or does not fit it.
    """
    adapters: dict[str, dict[str, Tensor]] = {}
    plain: State = {}
    for name, tensor in state.items():
        if (found := _ADAPTER.match(name)) is None:
            plain[name] = tensor
            continue
        halves = adapters.setdefault(found["module"], {})
        if found["part"] in halves:
            raise BadInputError(f"'{path}': '{found['module']}' has two LoRA adapters: merge them where it was trained")
        halves[found["part"]] = tensor
    for module, halves in adapters.items():
        name = f"{module}.weight"
        if len(halves) < 2 or name not in plain:
            missing = name if len(halves) == 2 else f"{module}.lora_{'B' if 'A' in halves else 'A'}"
            raise BadInputError(f"'{path}' has a LoRA adapter without '{missing}': the checkpoint is not whole")
        plain[name] = _folded(plain[name], halves["A"], halves["B"], alpha, name, path)
    return FoldedState(plain, len(adapters))


def _folded(weight: Tensor, a: Tensor, b: Tensor, alpha: float | None, name: str, path: Path) -> Tensor:
    rank = a.shape[0] if a.ndim else 0
    fits = (
        min(weight.ndim, a.ndim, b.ndim) >= 2
        and rank >= 1
        and a.shape[1:] == weight.shape[1:]
        and b.numel() == weight.shape[0] * rank
        and b.shape[:2] == (weight.shape[0], rank)
    )
    if not fits:
        shapes = f"{tuple(b.shape)} and {tuple(a.shape)}"
        raise BadInputError(
            f"'{path}': the LoRA adapter of '{name}' has shapes {shapes}, its weight {tuple(weight.shape)}"
        )
    if any(tensor.dtype not in FLOAT_DTYPES for tensor in (weight, a, b)):
        raise BadInputError(f"'{path}': '{name}' or its LoRA adapter is not floating-point: save it as float32")
    scale = 1.0 if alpha is None else alpha / rank
    change = b.float().flatten(1) @ a.float().flatten(1)
    return weight.float() + scale * change.view_as(weight)
