"""``rsrefseg parity --audit``: measure the share of float16's range that the activations of half blocks use."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Group, RenderableType
from rich.text import Text
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.records import Record
from rsrefseg.engines.system.tables import Table
from rsrefseg.model.stages import run_stage

from .arithmetic import LAYERS, PRODUCTS, attention_logits, largest
from .half_blocks import half_blocks, prepare_block
from .half_model import HalfModel, open_half_model
from .plan import HALF_MAX

WARN_ABOVE = 0.5
_SHOWN = 3
_OUTSIDE = ("", "", "output")
_SOFTMAX: frozenset[Callable[..., Any]] = frozenset({torch.softmax, Tensor.softmax, F.softmax})


class AuditRow(Record, frozen=True):
    """The largest absolute value at one place, in float32.

    Attributes:
        stage: the stage.
        block: the half block, the unit that a precision plan can keep in float32.
        module: the module within the block.
        what: ``input`` or ``output`` of the block, ``output`` of a linear map or convolution, ``product`` of two
            activations, attention ``logits``.
        largest: maximum over all reference samples; infinite if a value is not finite.
        kept_float32: whether the bundle's plan keeps the block in float32.
        share_of_float16: share of 65,504, the largest number of float16.
        warned: whether the value is too close to float16's limit.
    """

    stage: Stage
    block: str
    module: str
    what: str
    largest: float
    kept_float32: bool
    share_of_float16: float
    warned: bool

    @classmethod
    def of(cls, stage: Stage, place: tuple[str, str, str], largest: float, kept: bool) -> "AuditRow":
        """Create the row of a place (block, module and ``what``) and decide whether to warn."""
        share = largest / HALF_MAX
        return cls(stage, *place, largest, kept, share, warned=not kept and not share <= WARN_ABOVE)


class AuditReport(Record, frozen=True):
    """The result of an audit.

    Attributes:
        run: folder of the model's run.
        samples: number of reference samples.
        places: rows of all places in all stages.
        largest_float32_part: by stage, the largest value outside the half blocks.
        float16_max, warn_above: float16's largest number, and the share of it above which a place gets a warning.
    """

    run: Path
    samples: int
    places: tuple[AuditRow, ...]
    largest_float32_part: dict[Stage, float]
    float16_max: float = HALF_MAX
    warn_above: float = WARN_ABOVE

    @property
    def warnings(self) -> tuple[AuditRow, ...]:
        """Places above the limit, the largest first."""
        return tuple(sorted((row for row in self.places if row.warned), key=lambda row: -row.largest))

    def render(self) -> Any:
        """Return a table of the largest places of each stage, and all warnings."""
        title = f"run {self.run}, {self.samples} reference samples: largest activations of the half blocks"
        table = Table(title, ("stage", "place", "largest", "of 65,504", ""), words=2, verdict=True)
        for stage, largest_float32 in self.largest_float32_part.items():
            ordered = sorted((row for row in self.places if row.stage is stage), key=lambda row: -row.largest)
            for index, row in enumerate(ordered):
                if index < _SHOWN or row.warned:
                    verdict = "WARN" if row.warned else "float32" if row.kept_float32 else ""
                    table.add(
                        stage, f"{row.module} {row.what}", _number(row.largest), f"{row.share_of_float16:.2%}", verdict
                    )
            table.add(stage, "float32 parts", _number(largest_float32), "", "")
        parts: list[RenderableType] = [table.to_rich()]
        for row in self.warnings:
            reach = f"reaches {_number(row.largest)}, {row.share_of_float16:.0%} of float16's range"
            parts.append(Text(f"warning: {row.stage} {row.module} {row.what} {reach}", "bold red"))
        if self.warnings:
            stages = ",".join(dict.fromkeys(str(row.stage) for row in self.warnings))
            parts.append(f"`rsrefseg export --fp16 --fp32-sums {stages}` keeps sums of products in float32")
            parts.append("`rsrefseg parity --bisect` finds the blocks that must stay float32")
        else:
            parts.append(Text(f"no half block uses more than {WARN_ABOVE:.0%} of float16's range", "green"))
        return Group(*parts)


def run_audit(bundle: Path | None, run: Path | None) -> AuditReport:
    """Audit the model that a bundle was exported from; see ``open_half_model`` for arguments and errors."""
    return audit(open_half_model(bundle, run))


def audit(model: HalfModel) -> AuditReport:
    """Audit every stage of a float32 model on its samples."""
    rows: list[AuditRow] = []
    largest_float32: dict[Stage, float] = {}
    for stage in model.stages("auditing activations"):
        found, largest_float32[stage] = audit_stage(model, stage)
        rows += found
    return AuditReport(model.run, len(model.samples), tuple(rows), largest_float32)


def audit_stage(model: HalfModel, stage: Stage) -> tuple[list[AuditRow], float]:
    """Run a float32 stage with the operators of half precision and record the values in its half blocks.

    Returns:
        The rows of all places, and the largest value outside the half blocks (residual sums and layer norms).
    """
    module, recorder = model.load(stage), _Recorder()
    blocks = half_blocks(stage, module)
    for name in blocks:
        prepare_block(module, name)
        recorder.watch_block(name, module.get_submodule(name))
    inside = tuple(f"{block}." for block in blocks)
    for name, part in module.named_modules():
        if not f"{name}.".startswith(inside):
            part.register_forward_hook(lambda _, _args, result: recorder.record(_OUTSIDE, result))
    for inputs in model.inputs(stage):
        with recorder:
            run_stage(module, model.contracts[stage], inputs)
    kept, outside = model.plan.get(stage, {}), recorder.largest.pop(_OUTSIDE, 0.0)
    return [AuditRow.of(stage, place, found, place[0] in kept) for place, found in recorder.largest.items()], outside


class _Recorder(TorchFunctionMode):
    """Records absolute maxima of products and attention logits by place (block, module and ``what``)."""

    def __init__(self) -> None:
        super().__init__()
        self.largest: dict[tuple[str, str, str], float] = {}
        self._running: list[tuple[str, str]] = []

    def watch_block(self, block: str, root: nn.Module) -> None:
        """Record the inputs and outputs of a block and all products and logits of its modules."""
        for name, module in root.named_modules(prefix=block):
            module.register_forward_pre_hook(lambda _, _args, name=name: self._running.append((block, name)))
            module.register_forward_hook(lambda _, _args, _result: self._leave())
        root.register_forward_pre_hook(
            lambda _, args, kwargs: self.record((block, block, "input"), (*args, *kwargs.values())), with_kwargs=True
        )
        root.register_forward_hook(lambda _, _args, result: self.record((block, block, "output"), result))

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Intercept an operation; PyTorch calls this method for each."""
        kwargs = dict(kwargs or {})
        result = func(*args, **kwargs)
        if self._running:
            block, module = self._running[-1]
            if func in PRODUCTS:
                self.record((block, module, "output" if func in LAYERS else "product"), result)
            elif func in _SOFTMAX:
                self.record((block, module, "logits"), args[0])
            elif func is F.scaled_dot_product_attention:
                self.record((block, module, "logits"), attention_logits(args[0], args[1], kwargs.get("scale")))
        return result

    def _leave(self) -> None:
        self._running.pop()

    def record(self, place: tuple[str, str, str], value: Any) -> None:
        """Update the maximum of a place by a value."""
        if (found := _absolute_maximum(value)) is not None:
            self.largest[place] = max(self.largest.get(place, 0.0), found)


def _absolute_maximum(value: Any) -> float | None:
    """Return the absolute maximum of a value's floating-point tensors: None without any, infinity if not finite."""
    if isinstance(value, tuple | list):
        return max((item for item in map(_absolute_maximum, value) if item is not None), default=None)
    if not isinstance(value, Tensor) or not value.is_floating_point() or not value.numel():
        return None
    return largest(value)


def _number(value: float) -> str:
    if not math.isfinite(value):
        return "not finite"
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
