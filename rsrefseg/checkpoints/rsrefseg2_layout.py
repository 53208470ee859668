"""Maps checkpoints in the public layout of RSRefSeg 2, with peft's wrappers and Meta's names of SAM 2.

A file has all weights, those of the frozen towers among them, and the adapters of the training beside them.
"""

import re
from pathlib import Path

from torch import Tensor

from ..model.config import ModelConfig
from .key_matching import Matches, match
from .tensor_files import State
from .upstream_layout import PublishedCheckpoint, fold_adapters, plain_names

_MARK = "backbone.model.no_mem_embed"
_PREFIXES = {
    "siglip_vision.": "clip_vision_encoder.model.",
    "siglip_text.": "clip_text_encoder.model.",
    "attn_prompter.logit_": "clip_text_encoder.logit_",
    "attn_prompter.": "prompter.",
    "sam_encoder.hiera.": "backbone.model.image_encoder.trunk.",
    "sam_encoder.convs.": "backbone.model.image_encoder.neck.convs.",
    "sam_encoder.no_mem_embed": "backbone.model.no_mem_embed",
    "sam_encoder.": "backbone.model.sam_mask_decoder.",
    "sam_decoder.prompt_encoder.": "backbone.model.sam_prompt_encoder.",
    "sam_decoder.mask_decoder.": "backbone.model.sam_mask_decoder.",
    "sam_decoder.": "backbone.model.sam_mask_decoder.",
}
# From names of ``transformers`` and segment-anything to Meta's names in SAM 2.
_RENAMED = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"(neck\.convs\.\d)\.", r"\1.conv."),
        (r"(trunk\.blocks\.\d+\.)layer_norm", r"\1norm"),
        (r"(trunk\.blocks\.\d+\.mlp\.)proj_in", r"\1layers.0"),
        (r"(trunk\.blocks\.\d+\.mlp\.)proj_out", r"\1layers.1"),
        (r"patch_embed\.projection", "patch_embed.proj"),
        (r"(transformer\.layers\.\d\.mlp\.)lin1", r"\1layers.0"),
        (r"(transformer\.layers\.\d\.mlp\.)lin2", r"\1layers.1"),
    )
)
_CONSTANT = "sam_decoder.position_encoding"
# Scalars of the training, the object score and the pooled image feature, which no prediction uses.
_UNUSED = ("decode_head.", "backbone.model.sam_mask_decoder.pred_obj_score_head.", "clip_vision_encoder.model.head.")


def is_rsrefseg2(state: State) -> bool:
    """Return whether the tensors of a file are those of an RSRefSeg 2."""
    return _MARK in state


def plain_checkpoint(state: State, alpha: float | None, path: Path) -> PublishedCheckpoint:
    """Remove peft's wrappers from names and merge the adapters.

    Args:
        state: tensors of the file.
        alpha: LoRA alpha of the training; None if it equals the rank, as published.
        path: the file, for messages.

    Raises:
        BadInputError: two tensors map to one name, or an adapter is missing or cannot be merged.
    """
    plain = plain_names(state, path)
    # Adapters of unused parts are unused too.
    unused = {name: plain.pop(name) for name in list(plain) if name.startswith(_UNUSED)}
    adapters = fold_adapters(plain, alpha, path)
    return PublishedCheckpoint(path, plain | unused, adapters)


def match_published(checkpoint: PublishedCheckpoint, config: ModelConfig, expected: dict[str, Tensor]) -> Matches:
    """Match every tensor of a public checkpoint.

    Raises:
        BadInputError: a tensor is missing, unknown or of another shape; the message names it.
    """
    ours = {name: tensor for name, tensor in expected.items() if name != _CONSTANT}
    what = f"RSRefSeg 2 of preset '{config.preset}' in the public layout"
    return match(ours, published_name, checkpoint.tensors, lambda name: name.startswith(_UNUSED), checkpoint.path, what)


def published_name(name: str) -> str:
    """Return the public name of a tensor of an RSRefSeg 2."""
    prefix = next(prefix for prefix in _PREFIXES if name.startswith(prefix))
    name = _PREFIXES[prefix] + name.removeprefix(prefix)
    for pattern, replacement in _RENAMED:
        name = pattern.sub(replacement, name)
    return name
