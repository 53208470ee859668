"""SAM's attention in its forms, one windowed and one global block at a preset's real size, on every runtime here.

This is how to measure again what ``rsrefseg/attention.py`` keeps as defaults by target.
"""

import copy
import gc
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rsrefseg.engines.system.cores import usable_cores
from rsrefseg.engines.system.progress import ProgressLine
from rsrefseg.engines.system.tables import plain_table, three_digits

from ..system.machine import Machine, this_machine
from .block_runtimes import INPUT, OUTPUT, BlockRuntime, Floats, chosen_runtimes
from .timing import take_times

if TYPE_CHECKING:
    from torch import nn

    from rsrefseg.model.config import SamConfig

WINDOWED, GLOBAL = "windowed", "global"
# Rows of the grid that are taken at a time: those that divide it.
_GLOBAL_PARTS = (1, 4, 8, 16, 32, 64)
_WINDOWED_PARTS = (1, 2)
# Some runtimes on CPUs take these many bytes of scores several times over.
_MOST_SCORES_BYTES = 256 << 20
# A block on a GPU takes a millisecond: its first runs, which allocate, would be most of what is timed.
_WARM_UP_S, _TIMED_S = 0.05, 0.1
_LEAST_RUNS = 2
_OPSET, _FUSED_OPSET = 18, 23


@dataclass(frozen=True, slots=True)
class Variant:
    """A block's kind, and the form and query parts of its attention.

    Attributes:
        kind: windowed or global.
        form: of ``AttentionForm``.
        parts: in which queries are taken.
        half: whether attention is a half island, as ``export --fp16`` writes it.
        fused: whether it is one operator, of opset 23.
    """

    kind: str
    form: str
    parts: int
    half: bool = False
    fused: bool = False


@dataclass(frozen=True, slots=True)
class AttentionTiming:
    """One variant on one runtime.

    Attributes:
        runtime: name of it.
        median_ms: of all runs, by the clock.
        least_ms: the shortest run.
        core_ms: least processor time divided by the cores, which other work on the machine hardly moves; for a GPU it
            is the host's, and of no interest.
        relative_l2: distance from PyTorch's float32.
    """

    variant: Variant
    runtime: str
    median_ms: float
    least_ms: float
    core_ms: float
    relative_l2: float

    @property
    def cost_ms(self) -> float:
        """What forms are compared by: on a GPU the clock, which nothing else moves."""
        return self.median_ms if self.variant.half else self.core_ms


@dataclass(frozen=True, slots=True)
class AttentionReport:
    """All variants on all runtimes, in the order they ran."""

    preset: str
    rounds: int
    machine: Machine
    timings: tuple[AttentionTiming, ...]

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "preset": self.preset,
            "rounds": self.rounds,
            "machine": self.machine.as_dict(),
            "timings": [asdict(timing) for timing in self.timings],
        }

    def render(self) -> Any:
        """A table for a person, the fastest of each runtime and kind first."""
        title = f"attention of SAM's encoder, preset {self.preset}, norm and sum included, {self.rounds} rounds"
        table = plain_table(title, ("runtime", "block", "form"), ("parts", "ms", "least", "core ms", "rel. L2"))
        ordered = sorted(self.timings, key=lambda timing: (timing.runtime, timing.variant.kind, timing.cost_ms))
        for timing in ordered:
            variant = timing.variant
            times = (three_digits(value) for value in (timing.median_ms, timing.least_ms, timing.core_ms))
            words = (timing.runtime, variant.kind, f"{variant.form}, one operator" if variant.fused else variant.form)
            table.add_row(*words, str(variant.parts), *times, f"{timing.relative_l2:.1e}")
        return table


def run_attention_bench(preset: str, rounds: int, runtimes: str | None = None) -> AttentionReport:
    """Export every variant with random weights and time them in turn; only one is loaded at a time.

    Args:
        preset: whose sizes.
        rounds: of turns.
        runtimes: comma-separated names; all that are here by default.

    Raises:
        BadInputError: there is no such preset, or no such runtime here.
    """
    from rsrefseg.model.config import model_config

    config = model_config(preset).sam
    pairs = [(variant, runtime) for runtime in chosen_runtimes(runtimes) for variant in _variants(config, runtime)]
    tokens = np.random.default_rng(0).normal(size=(1, config.grid_size**2, config.embed_dim))
    x = tokens.astype(np.float32)
    runs: dict[tuple[Variant, str], list[_Run]] = {}
    with tempfile.TemporaryDirectory() as folder, ProgressLine(f"attention of preset {preset}") as progress:
        blocks = {kind: _block(config, kind) for kind in (WINDOWED, GLOBAL)}
        wanted = {kind: _torch_result(block, x, config.grid_size) for kind, block in blocks.items()}
        variants = dict.fromkeys(variant for variant, _ in pairs)
        modules = {variant: _with_attention(blocks[variant.kind], variant, config) for variant in variants}
        paths = {variant: Path(folder) / f"{index}.onnx" for index, variant in enumerate(variants)}
        for variant, path in paths.items():
            _export(modules[variant], path, x, variant.fused)
        turns = [pair for _ in range(rounds) for pair in pairs]
        for done, (variant, runtime) in enumerate(turns):
            progress.update(done, len(turns))
            found = _take_turn(runtime, paths[variant], modules[variant], x, wanted[variant.kind])
            runs.setdefault((variant, runtime.name), []).extend(found)
        progress.update(len(turns), len(turns))
    timings = tuple(_timing(variant, name, found) for (variant, name), found in runs.items())
    return AttentionReport(preset, rounds, this_machine(), timings)


@dataclass(frozen=True, slots=True)
class _Run:
    """Clock and processor milliseconds of one run, and its distance from PyTorch."""

    clock_ms: float
    processor_ms: float
    relative_l2: float


def _variants(config: "SamConfig", runtime: BlockRuntime) -> Iterator[Variant]:
    from rsrefseg.inference.attention import AttentionForm

    scores_bytes = 4 * config.num_heads * config.grid_size**4
    for form in AttentionForm:
        for parts in _WINDOWED_PARTS:
            if config.window_size % parts == 0:
                yield Variant(WINDOWED, form, parts, runtime.half)
        for parts in _GLOBAL_PARTS:
            if config.grid_size % parts == 0 and (runtime.half or scores_bytes // parts <= _MOST_SCORES_BYTES):
                yield Variant(GLOBAL, form, parts, runtime.half)
    if runtime.fused:
        yield from (Variant(kind, AttentionForm.ADDITIVE, 1, runtime.half, True) for kind in (WINDOWED, GLOBAL))


def _block(config: "SamConfig", kind: str) -> "nn.Module":
    """A block without its MLP, which is the same in all variants; its position embeddings are not left zero."""
    from functools import partial

    import torch
    from segment_anything.modeling.image_encoder import Block
    from torch import nn

    torch.manual_seed(0)
    block = Block(
        config.embed_dim,
        config.num_heads,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=config.window_size if kind == WINDOWED else 0,
        input_size=(config.grid_size, config.grid_size),
    )
    for table in (block.attn.rel_pos_h, block.attn.rel_pos_w):
        nn.init.normal_(table, std=0.02)
    block.norm2, block.mlp = nn.Identity(), nn.Identity()
    return block.eval()  # type: ignore[no-any-return]


def _with_attention(block: "nn.Module", variant: Variant, config: "SamConfig") -> "nn.Module":
    from rsrefseg.export.precision.casts import to_half
    from rsrefseg.export.precision.half_blocks import cast_arguments
    from rsrefseg.inference.attention import AttentionForm, RelativePositionAttention

    made: Any = copy.deepcopy(block)
    form = AttentionForm(variant.form)
    made.attn = RelativePositionAttention(
        made.attn, form, config.grid_size, made.window_size, variant.parts, variant.fused
    )
    made.window_size = 0
    if variant.half:  # the sum with the block's float32 input casts what it gives
        cast_arguments(made.attn.half(), to_half)
    return made  # type: ignore[no-any-return]


def _torch_result(block: "nn.Module", x: Floats, grid_size: int) -> Floats:
    """What the published block gives, which takes a grid."""
    import torch

    with torch.no_grad():
        grid = torch.unflatten(torch.from_numpy(x), 1, (grid_size, grid_size))
        result: Floats = block(grid).flatten(1, 2).numpy()
    return result


def _export(module: "nn.Module", path: Path, x: Floats, fused: bool) -> None:
    import contextlib
    import io
    import logging
    import warnings

    import torch

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            module,
            (torch.zeros((2, *x.shape[1:])),),
            dynamo=True,
            opset_version=_FUSED_OPSET if fused else _OPSET,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("images", min=1, max=4)},),
            verbose=False,
        )
        assert program is not None
        program.save(path)


def _take_turn(runtime: BlockRuntime, path: Path, module: Any, x: Floats, wanted: Floats) -> list[_Run]:
    """Load, warm up, run, and forget."""
    loaded = runtime.load(path, module, x)
    take_times(loaded.run, 1, _WARM_UP_S)
    error = float(np.linalg.norm(loaded.result() - wanted) / np.linalg.norm(wanted))
    times = take_times(loaded.run, _LEAST_RUNS, _TIMED_S)
    del loaded
    gc.collect()
    return [_Run(one.clock_s * 1e3, one.processor_s * 1e3, error) for one in times]


def _timing(variant: Variant, runtime: str, runs: list[_Run]) -> AttentionTiming:
    clock = [run.clock_ms for run in runs]
    return AttentionTiming(
        variant=variant,
        runtime=runtime,
        median_ms=float(np.median(clock)),
        least_ms=min(clock),
        core_ms=min(run.processor_ms for run in runs) / usable_cores(),
        relative_l2=max(run.relative_l2 for run in runs),
    )
