"""Half blocks: modules that compute in float16 between a cast of their inputs and a cast of their outputs."""

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
from rsrefseg.inference.rsrefseg2.sam2 import InferenceSam2Encoder
from rsrefseg.model.config import ModelConfig
from rsrefseg.model.model import build_stage
from rsrefseg.model.prompter import ConvNormAct
from rsrefseg.model.rsrefseg2.prompter import CascadedPrompter
from rsrefseg.model.rsrefseg2.sam2 import Sam2Encoder

from .arithmetic import Fp32Sums, largest, to_float, to_half
from .plan import ALWAYS_FP32, ALWAYS_FP32_RSREFSEG2, HALF_MAX, PrecisionPlan


@dataclass(frozen=True, slots=True)
class BlockRule:
    """A rule that selects half blocks of a stage by their module names.

    Attributes:
        pattern: full module name, with ``*`` for a number.
        norm: sibling whose float32 output is cast directly, so that the operations in between move half the bytes.
        leaves_half: whether the output stays float16, because an addition to float32 casts it or another block uses it.
    """

    pattern: str
    norm: str | None = None
    leaves_half: bool = False


_SIGLIP = (BlockRule("encoder.layers.*.self_attn"), BlockRule("encoder.layers.*.mlp"))
_TRANSFORMER = "mask_decoder.transformer"

RULES: Mapping[Stage, tuple[BlockRule, ...]] = {
    Stage.SIGLIP_VISION: (
        BlockRule("embeddings.patch_embedding"),
        BlockRule("embeddings.position_embedding"),
        *_SIGLIP,
    ),
    Stage.SIGLIP_TEXT: (
        BlockRule("embeddings.token_embedding"),
        BlockRule("embeddings.position_embedding"),
        *_SIGLIP,
        BlockRule("head"),
    ),
    Stage.ATTN_PROMPTER: (
        BlockRule("down_channel", leaves_half=True),
        BlockRule("down_spatial"),
        *(BlockRule(f"*_attn_layers.*.{part}_*") for part in ("self_attn", "cross_attn", "mlp")),
        BlockRule("sparse_prompt_mlp"),
        BlockRule("dense_prompt_conv.0"),
        BlockRule("dense_prompt_conv.3"),
    ),
    Stage.SAM_ENCODER: (
        BlockRule("image_encoder.patch_embed"),
        BlockRule("image_encoder.blocks.*.attn", norm="norm1", leaves_half=True),
        BlockRule("image_encoder.blocks.*.mlp"),
        BlockRule("image_encoder.neck.0"),
        BlockRule("image_encoder.neck.2"),
        BlockRule("hiera.patch_embed"),
        BlockRule("hiera.blocks.*.attn", norm="layer_norm1", leaves_half=True),
        BlockRule("hiera.blocks.*.proj"),
        BlockRule("hiera.blocks.*.mlp"),
        BlockRule("convs.*"),
    ),
    Stage.SAM_DECODER: (
        BlockRule(f"{_TRANSFORMER}.layers.*.self_attn"),
        BlockRule(f"{_TRANSFORMER}.layers.*.cross_attn_token_to_image"),
        BlockRule(f"{_TRANSFORMER}.layers.*.mlp"),
        BlockRule(f"{_TRANSFORMER}.layers.*.cross_attn_image_to_token"),
        BlockRule(f"{_TRANSFORMER}.final_attn_token_to_image"),
        BlockRule("mask_decoder.output_upscaling.0"),
    ),
}

# Tables that are not modules: stored in half, cast where they are added to float32.
TABLES: Mapping[Stage, tuple[str, ...]] = {
    Stage.ATTN_PROMPTER: ("grid_encoding",),
    Stage.SAM_ENCODER: ("image_encoder.pos_embed",),
    Stage.SAM_DECODER: ("position_encoding",),
}

TABLES_RSREFSEG2: Mapping[Stage, tuple[str, ...]] = {
    Stage.ATTN_PROMPTER: ("img_pe",),
    Stage.SAM_ENCODER: (),
}


def half_blocks(stage: Stage, module: nn.Module) -> dict[str, BlockRule]:
    """Return the half blocks of a stage by module name, each with its rule, in the order of the modules."""
    return {
        name: rule
        for name, _ in module.named_modules()
        for rule in RULES[stage]
        if fnmatch.fnmatchcase(name, rule.pattern) and name.count(".") == rule.pattern.count(".")
    }


def convert_to_half(
    stage: Stage, module: nn.Module, fp32_blocks: Mapping[str, str] | None = None, fp32_sums: bool = False
) -> dict[str, str]:
    """Convert a float32 stage in place to a stage with half blocks. Its inputs and outputs stay float32.

    A block with weights beyond float16's range stays float32.

    Args:
        stage: the stage.
        module: module of the stage, float32, in eval mode.
        fp32_blocks: blocks that stay float32, with reasons.
        fp32_sums: whether half blocks sum products in float32; factors and results stay float16.

    Returns:
        All parts that stay float32, with reasons, for the manifest.

    Raises:
        BadInputError: ``fp32_blocks`` names a module that is not a half block of this stage.
    """
    blocks, kept = half_blocks(stage, module), dict(fp32_blocks or {})
    _check_blocks(stage, blocks, kept)
    for name, rule in blocks.items():
        if name not in kept:
            prepare_block(module, name)
            weight = max(map(largest, module.get_submodule(name).parameters()), default=0.0)
            if weight > HALF_MAX:
                kept[name] = f"a weight of {weight:,.0f} does not fit into float16"
        if name in kept:
            # The previous block may output float16.
            cast_arguments(module.get_submodule(name), to_float)
        else:
            _halve(module, name, rule)
            if fp32_sums:
                sum_in_float32(module.get_submodule(name))
    second = isinstance(module, CascadedPrompter | Sam2Encoder | InferenceSam2Encoder)
    for name in (TABLES_RSREFSEG2 if second else TABLES).get(stage, ()):
        _halve_table(module, name)
    return {**(ALWAYS_FP32_RSREFSEG2 if second else ALWAYS_FP32)[stage], **kept}


def check_plan(plan: PrecisionPlan, config: ModelConfig) -> None:
    """Check that a model has all blocks of a plan, without loading its weights.

    Raises:
        BadInputError: the model lacks a block; the message names it.
    """
    for stage, blocks in plan.items():
        with torch.device("meta"):
            module = build_stage(stage, config)
        _check_blocks(stage, half_blocks(stage, module), blocks)


def prepare_block(root: nn.Module, name: str) -> None:
    """Replace operators of a float32 block by those that it has in half precision."""
    module = root.get_submodule(name)
    for part in module.modules():
        if isinstance(part, ConvNormAct):
            fold_batch_norm(part)
    if hasattr(module, "activation_fn"):  # SigLIP's, always gelu_pytorch_tanh
        module.activation_fn = SigmoidGelu()
    # SAM's mask decoder scales after the product, which may then exceed 65,504.
    if hasattr(module, "internal_dim"):
        root.set_submodule(name, FoldedCrossAttention(module))


def cast_arguments(module: nn.Module, cast: Callable[[Any], Any]) -> None:
    """Register a hook that casts all arguments of a module; a tensor that is passed twice is cast once."""

    def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        done = {id(value): cast(value) for value in (*args, *kwargs.values())}
        return tuple(done[id(value)] for value in args), {name: done[id(value)] for name, value in kwargs.items()}

    module.register_forward_pre_hook(hook, with_kwargs=True)


def _check_blocks(stage: Stage, blocks: Collection[str], chosen: Collection[str]) -> None:
    for name in chosen:
        if name not in blocks:
            near = difflib.get_close_matches(name, blocks, n=3, cutoff=0.0)
            raise BadInputError(
                f"the precision plan names '{name}', which is not one of the {len(blocks)} half blocks of '{stage}' "
                f"in this model: the nearest names are {', '.join(near)}"
            )


def _halve(root: nn.Module, name: str, rule: BlockRule) -> None:
    module = root.get_submodule(name).half()
    if rule.norm is not None:
        norm = root.get_submodule(f"{name.rpartition('.')[0]}.{rule.norm}")
        norm.register_forward_hook(lambda _module, _args, result: to_half(result))
    cast_arguments(module, to_half)
    if not rule.leaves_half:
        module.register_forward_hook(lambda _module, _args, result: to_float(result))


def sum_in_float32(module: nn.Module) -> None:
    """Change a float16 module to sum products in float32; see ``Fp32Sums``."""
    forward = module.forward

    def forward_with_float32_sums(*args: Any, **kwargs: Any) -> Any:
        with Fp32Sums():
            return forward(*args, **kwargs)

    module.forward = forward_with_float32_sums


def _halve_table(module: nn.Module, name: str) -> None:
    owner, own_name = module.get_submodule(name.rpartition(".")[0]), name.rpartition(".")[2]
    table = getattr(owner, own_name)
    assert isinstance(table, Tensor)
    if largest(table) > HALF_MAX:
        return
    half = table.detach().half()
    setattr(owner, own_name, nn.Parameter(half, requires_grad=False) if isinstance(table, nn.Parameter) else half)
