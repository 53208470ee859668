"""Half islands: modules that compute in float16 between a cast of what they take and a cast of what they give."""

import difflib
import fnmatch
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.errors import BadInputError
from rsrefseg.inference.operators import SigmoidGelu, fold_batch_norm
from rsrefseg.inference.projections import FoldedCrossAttention
from rsrefseg.model.config import ModelConfig
from rsrefseg.model.model import build_stage
from rsrefseg.model.prompter import ConvNormAct

from .casts import largest, to_float, to_half
from .plan import ALWAYS_FP32, HALF_MAX, Fp32Part, PrecisionPlan


@dataclass(frozen=True, slots=True)
class IslandRule:
    """Which modules of a stage are half islands.

    Attributes:
        pattern: full module name, ``*`` for a number.
        norm: sibling of the module whose float32 result is cast right away: what lies in between moves half the bytes.
        leaves_half: what it gives is added to a float32 tensor, which casts it, or goes into the next island.
    """

    pattern: str
    norm: str | None = None
    leaves_half: bool = False


_SIGLIP = (IslandRule("encoder.layers.*.self_attn"), IslandRule("encoder.layers.*.mlp"))
_TRANSFORMER = "mask_decoder.transformer"

RULES: Mapping[Stage, tuple[IslandRule, ...]] = {
    Stage.SIGLIP_VISION: (
        IslandRule("embeddings.patch_embedding"),
        IslandRule("embeddings.position_embedding"),
        *_SIGLIP,
    ),
    Stage.SIGLIP_TEXT: (
        IslandRule("embeddings.token_embedding"),
        IslandRule("embeddings.position_embedding"),
        *_SIGLIP,
        IslandRule("head"),
    ),
    Stage.ATTN_PROMPTER: (IslandRule("down_channel", leaves_half=True), IslandRule("down_spatial")),
    Stage.SAM_ENCODER: (
        IslandRule("image_encoder.patch_embed"),
        # Windows are cut and put together again in half.
        IslandRule("image_encoder.blocks.*.attn", norm="norm1", leaves_half=True),
        IslandRule("image_encoder.blocks.*.mlp"),
        IslandRule("image_encoder.neck.0"),
        IslandRule("image_encoder.neck.2"),
    ),
    Stage.SAM_DECODER: (
        IslandRule(f"{_TRANSFORMER}.layers.*.self_attn"),
        IslandRule(f"{_TRANSFORMER}.layers.*.cross_attn_token_to_image"),
        IslandRule(f"{_TRANSFORMER}.layers.*.mlp"),
        IslandRule(f"{_TRANSFORMER}.layers.*.cross_attn_image_to_token"),
        IslandRule(f"{_TRANSFORMER}.final_attn_token_to_image"),
        IslandRule("mask_decoder.output_upscaling.0"),
    ),
}

# Tables that are not modules: kept in half, cast (or met by an island's half) where they are added.
TABLES: Mapping[Stage, tuple[str, ...]] = {
    Stage.ATTN_PROMPTER: ("grid_encoding",),
    Stage.SAM_ENCODER: ("image_encoder.pos_embed",),
    Stage.SAM_DECODER: ("position_encoding",),
}


@dataclass(frozen=True, slots=True)
class Island:
    """One half island of a stage: its name (that of the matched module) and the rule that made it."""

    name: str
    rule: IslandRule


def islands_of(stage: Stage, module: nn.Module) -> tuple[Island, ...]:
    """The half islands of a stage, in the order of its modules."""
    return tuple(
        Island(name, rule)
        for name, _ in module.named_modules()
        for rule in RULES[stage]
        if fnmatch.fnmatchcase(name, rule.pattern) and name.count(".") == rule.pattern.count(".")
    )


def make_half(stage: Stage, module: nn.Module, blocks: Collection[Fp32Part] = ()) -> tuple[Fp32Part, ...]:
    """Turn a float32 stage, in place, into one with half islands; it still takes and gives float32.

    A block whose weights do not fit into float16 stays float32 by itself.

    Args:
        stage: which.
        module: float32, in eval mode. Its weights are halved one island after the other.
        blocks: islands that stay float32.

    Returns:
        Everything that stayed float32, and why: the record for the manifest.

    Raises:
        BadInputError: a block is no island of this stage.
    """
    islands = islands_of(stage, module)
    check_blocks(stage, [island.name for island in islands], blocks)
    kept = {part.module: part for part in blocks}
    for island in islands:
        if island.name not in kept:
            prepare_island(module, island)
            if (weight := _largest_weight(module.get_submodule(island.name))) > HALF_MAX:
                kept[island.name] = Fp32Part(island.name, f"a weight of {weight:,.0f} does not fit into float16")
        if island.name in kept:
            # An island before it may have left half.
            cast_arguments(module.get_submodule(island.name), to_float)
        else:
            _halve(module, island)
    for name in TABLES.get(stage, ()):
        _halve_table(module, name)
    return (*ALWAYS_FP32[stage], *kept.values())


def check_plan(plan: PrecisionPlan, config: ModelConfig) -> None:
    """Refuse a plan that names a block which a model does not have. No weights are needed for that.

    Raises:
        BadInputError: names it.
    """
    for stage in Stage:
        if plan.of(stage):
            with torch.device("meta"):
                module = build_stage(stage, config)
            check_blocks(stage, [island.name for island in islands_of(stage, module)], plan.of(stage))


def check_blocks(stage: Stage, islands: Collection[str], blocks: Collection[Fp32Part]) -> None:
    """Refuse a block that is not among the half islands.

    Raises:
        BadInputError: names it.
    """
    for part in blocks:
        if part.module not in islands:
            near = difflib.get_close_matches(part.module, islands, n=3, cutoff=0.0)
            raise BadInputError(
                f"the precision plan names '{part.module}', which is none of the {len(islands)} half blocks of "
                f"'{stage}' in this model: the nearest names are {', '.join(near)}"
            )


def prepare_island(root: nn.Module, island: Island) -> None:
    """Give an island, still in float32, the operators that it will have in half precision."""
    module = root.get_submodule(island.name)
    for block in module.modules():
        if isinstance(block, ConvNormAct):
            fold_batch_norm(block)
    if hasattr(module, "activation_fn"):  # SigLIP's, always gelu_pytorch_tanh
        module.activation_fn = SigmoidGelu()
    # SAM's mask decoder scales after the product, which may pass 65,504 in 256 channels where the scaled one does not.
    if hasattr(module, "internal_dim"):
        root.set_submodule(island.name, FoldedCrossAttention(module))


def cast_arguments(module: nn.Module, cast: Callable[[Any], Any]) -> torch.utils.hooks.RemovableHandle:
    """Cast whatever a module is called with; a tensor that is given twice is cast once."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        done = {id(value): cast(value) for value in (*args, *kwargs.values())}
        return tuple(done[id(value)] for value in args), {name: done[id(value)] for name, value in kwargs.items()}

    return module.register_forward_pre_hook(hook, with_kwargs=True)


def _halve(root: nn.Module, island: Island) -> None:
    module = root.get_submodule(island.name).half()
    if island.rule.norm is not None:
        norm = root.get_submodule(f"{island.name.rpartition('.')[0]}.{island.rule.norm}")
        norm.register_forward_hook(lambda _module, _args, result: to_half(result))
    cast_arguments(module, to_half)
    if not island.rule.leaves_half:
        module.register_forward_hook(lambda _module, _args, result: to_float(result))


def _halve_table(module: nn.Module, name: str) -> None:
    owner, own_name = module.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
    table = getattr(owner, own_name)
    assert isinstance(table, Tensor)
    if largest(table) > HALF_MAX:
        return
    half = table.detach().half()
    setattr(owner, own_name, nn.Parameter(half, requires_grad=False) if isinstance(table, nn.Parameter) else half)


def _largest_weight(module: nn.Module) -> float:
    return max(map(largest, module.parameters()), default=0.0)
