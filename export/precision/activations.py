"""How large the activations of half islands are: what float16 would have to hold, measured in float32."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from rsrefseg.engines.bundle.contracts import Stage, StageContract
from rsrefseg.model.stages import run_stage

from .arithmetic import LAYERS, PRODUCTS, attention_logits
from .casts import largest
from .half_blocks import Island, islands_of, prepare_island

_SOFTMAX: frozenset[Callable[..., Any]] = frozenset({torch.softmax, Tensor.softmax, F.softmax})


@dataclass(frozen=True, slots=True)
class Activation:
    """The largest absolute value at one place of a half island, over all inputs.

    Attributes:
        block: the island's name.
        module: which of its modules.
        what: ``input`` or ``output`` of the island, ``output`` of a linear map or convolution, ``product`` of two
            activations, attention ``logits``.
        largest: absolute maximum; infinite where a value is not finite.
    """

    block: str
    module: str
    what: str
    largest: float


@dataclass(frozen=True, slots=True)
class StageActivations:
    """All places of a stage, and the largest value among its float32 parts: residual sums and layer norms."""

    places: tuple[Activation, ...]
    largest_float32: float


def measure_activations(
    stage: Stage, module: nn.Module, contract: StageContract, inputs: Iterable[Mapping[str, Tensor]]
) -> StageActivations:
    """Run a float32 stage with the operators of half precision and watch what its islands compute.

    Args:
        stage: which.
        module: float32, in eval mode; it is not fit for anything else afterwards.
        contract: of the stage.
        inputs: real ones, by contract name.
    """
    watch = _Watch()
    islands = islands_of(stage, module)
    for island in islands:
        prepare_island(module, island)
    for island in islands:
        watch.island(module, island)
    watch.float32_parts(module, islands)
    for given in inputs:
        with watch:
            run_stage(module, contract, given)
    places = [Activation(*key, found) for key, found in watch.largest.items()]
    return StageActivations(tuple(places), watch.largest_float32)


class _Watch(TorchFunctionMode):
    """Keeps absolute maxima of products and attention logits by the module that computes them."""

    def __init__(self) -> None:
        super().__init__()
        self.largest: dict[tuple[str, str, str], float] = {}
        self.largest_float32 = 0.0
        self._running: list[tuple[str, str]] = []

    def island(self, root: nn.Module, island: Island) -> None:
        """Watch an island's inputs, outputs and everything its modules compute."""
        block = root.get_submodule(island.name)
        for name, module in block.named_modules(prefix=island.name):
            self._follow(module, island.name, name)
        block.register_forward_pre_hook(
            lambda _, args, kwargs: self._note(island.name, island.name, "input", (*args, *kwargs.values())),
            with_kwargs=True,
        )
        block.register_forward_hook(lambda _, _args, result: self._note(island.name, island.name, "output", result))

    def float32_parts(self, root: nn.Module, islands: Sequence[Island]) -> None:
        """Watch what modules outside the islands give."""
        inside = tuple(f"{island.name}." for island in islands)
        for name, module in root.named_modules():
            if not f"{name}.".startswith(inside):
                module.register_forward_hook(self._note_float32)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Called by PyTorch for every operation."""
        kwargs = dict(kwargs or {})
        result = func(*args, **kwargs)
        if self._running:
            block, module = self._running[-1]
            if func in PRODUCTS:
                self._note(block, module, "output" if func in LAYERS else "product", result)
            elif func in _SOFTMAX:
                self._note(block, module, "logits", args[0])
            elif func is F.scaled_dot_product_attention:
                self._note(block, module, "logits", attention_logits(args[0], args[1], kwargs.get("scale")))
        return result

    def _follow(self, module: nn.Module, block: str, name: str) -> None:
        def enter(_: nn.Module, _args: Any) -> None:
            self._running.append((block, name))

        def leave(_: nn.Module, _args: Any, _result: Any) -> None:
            self._running.pop()

        module.register_forward_pre_hook(enter)
        module.register_forward_hook(leave)

    def _note(self, block: str, module: str, what: str, value: Any) -> None:
        if (found := _absolute_maximum(value)) is not None:
            key = (block, module, what)
            self.largest[key] = max(self.largest.get(key, 0.0), found)

    def _note_float32(self, _: nn.Module, _args: Any, result: Any) -> None:
        self.largest_float32 = max(self.largest_float32, _absolute_maximum(result) or 0.0)


def _absolute_maximum(value: Any) -> float | None:
    """Of all floating-point tensors in a value; None where there is none, infinity for what is not finite."""
    if isinstance(value, tuple | list):
        found = [item for item in map(_absolute_maximum, value) if item is not None]
        return max(found, default=None)
    if not isinstance(value, Tensor) or not value.is_floating_point() or not value.numel():
        return None
    return largest(value)
