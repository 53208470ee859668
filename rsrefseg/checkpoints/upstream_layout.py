"""Maps checkpoints in the two public RSRefSeg layouts, with peft's wrappers and the Hugging Face names of SAM.

The names follow from the structure of the public models. In the first layout, wrappers call their content ``model`` and
the file has all weights. In the second, that of ``luisml77/rsrefseg``, towers have no wrapper and the file has only
what was trained; the rest is that of the published SAM and SigLIP.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from rsrefseg.engines.errors import BadInputError

from ..model.config import ModelConfig, Preset, model_config
from . import siglip_folder
from .key_matching import Matches, match
from .sam_file import OWN_CONSTANTS, hugging_face_name, join_shared_encoding
from .tensor_files import FLOAT_DTYPES, State

# peft adds this after the name of the module it wraps.
_PEFT = re.compile(r"^(backbone(?:\.model\.image_encoder)?|clip_vision_encoder|clip_text_encoder)\.base_model\.model\.")
# Name of the weights of an adapted layer before merging.
_BASE_LAYER = ".base_layer."
_ADAPTER = re.compile(r"^(?P<module>.+)\.lora_(?P<half>[AB])(\.\w+)?\.weight$")
# Older releases of transformers have an additional level in each SigLIP tower.
_TOWER = re.compile(r"^(clip_(?:vision|text)_encoder\.model)\.(?:vision|text)_model\.")
# From names of the second layout, without peft's wrappers, to those of the first.
_SECOND_LAYOUT = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (
            r"^(backbone|clip_vision_encoder|sam_prompt_encoder|sam_mask_decoder)\.(?!model\.|shared_image_)",
            r"\1.model.",
        ),
        (r"^clip_text_encoder\.(?!model\.|logit_)", "clip_text_encoder.model."),
        (r"^logit_", "clip_text_encoder.logit_"),
        (r"^shared_image_embedding\.", "backbone.shared_image_embedding."),
        (r"^(prompter_down_(?:channel|spatial\.\d+))\.norm\.", r"\1.bn."),
    )
)
_CONVOLUTION_BIAS = re.compile(r"^(prompter_down_(?:channel|spatial\.\d+))\.conv\.bias$")
# Classifiers that only a training against differences between data sets uses.
_TRAINING_ONLY = ("siglip_domain_classifier.", "sam_domain_classifier.")
_LAYER = re.compile(r"\.(layers|blocks|convs)\.\d+\.")
_SHARED = "backbone.shared_image_embedding.positional_embedding"
_OTHER = "sam_prompt_encoder.model.shared_embedding.positional_embedding"
_CONSTANTS = (*OWN_CONSTANTS, "attn_prompter.grid_encoding")
_PATCHES = "backbone.model.patch_embed.projection.weight"
# From names of RSRefSeg (SAM's parts as in the Hugging Face port) to public names.
_PUBLIC_PREFIXES = {
    "vision_encoder.": "backbone.model.",
    "shared_image_embedding.": "backbone.shared_image_embedding.",
    "prompt_encoder.": "sam_prompt_encoder.model.",
    "mask_decoder.": "sam_mask_decoder.model.",
    "siglip_vision.": "clip_vision_encoder.model.",
    "siglip_text.": "clip_text_encoder.model.",
    "attn_prompter.logit_": "clip_text_encoder.logit_",
    "attn_prompter.down_spatial.2.": "prompter_down_spatial.2.conv.",
}


@dataclass(frozen=True, slots=True)
class PublishedCheckpoint:
    """A public checkpoint with merged adapters and names without wrappers."""

    path: Path
    tensors: State
    adapters: int


def plain_checkpoint(state: State, alpha: float | None, path: Path, bases: State | None = None) -> PublishedCheckpoint:
    """Remove peft's wrappers from names and merge the adapters.

    Args:
        state: tensors of the file, in either layout.
        alpha: LoRA alpha of the training; None if it equals the rank, as published.
        path: the file, for messages.
        bases: tensors of the published SAM and SigLIP by ``published_name``, for those that the file lacks.

    Raises:
        BadInputError: two tensors map to one name, or an adapter cannot be merged.
    """
    plain = plain_names(state, path)
    # Adapters of unused parts are unused too.
    unused = {name: plain.pop(name) for name in list(plain) if _is_left_out(name)}
    if bases is None and is_partial(state):
        raise BadInputError(
            f"'{path}' has only the trained part of an RSRefSeg: give its bases with --sam and --siglip"
        )
    _fold_biases(plain)
    adapters = fold_adapters(plain := {**(bases or {}), **plain}, alpha, path)
    # Only points and boxes use the prompt encoder's copy, so the two may differ after training.
    if _SHARED not in plain or _OTHER not in plain or torch.equal(plain[_SHARED], plain[_OTHER]):
        plain = join_shared_encoding(plain, _SHARED, _OTHER, path)
    return PublishedCheckpoint(path, plain | unused, adapters)


def plain_names(state: State, path: Path) -> State:
    """Return tensors by their names without the wrappers of peft and of the second layout.

    Raises:
        BadInputError: two tensors map to one name.
    """
    plain: State = {}
    for name, tensor in state.items():
        short = _PEFT.sub(r"\1.", name).replace(_BASE_LAYER, ".")
        for pattern, replacement in _SECOND_LAYOUT:
            short = pattern.sub(replacement, short)
        short = _TOWER.sub(r"\1.", short)
        if short in plain:
            raise BadInputError(f"'{path}' contains '{short}' twice, wrapped and plain: save the model again")
        plain[short] = tensor
    return plain


def is_partial(state: State) -> bool:
    """Return whether a checkpoint has LoRA adapters but not the weights of SAM's image encoder."""
    has_adapters = any(_ADAPTER.match(name) for name in state)
    return has_adapters and not any("patch_embed.projection" in name for name in state)


def match_published(checkpoint: PublishedCheckpoint, config: ModelConfig, expected: Mapping[str, Tensor]) -> Matches:
    """Match every tensor of a public checkpoint.

    Raises:
        BadInputError: a tensor is missing, unknown or of another shape; the message names it.
    """
    ours = {name: tensor for name, tensor in expected.items() if name not in _CONSTANTS}
    what = f"RSRefSeg of preset '{config.preset}' in the public layout"
    return match(ours, published_name, checkpoint.tensors, _is_unused, checkpoint.path, what)


def published_name(name: str) -> str:
    """Return the public name of an RSRefSeg tensor."""
    stage, _, rest = name.partition(".")
    if stage in ("sam_encoder", "sam_decoder"):
        name = hugging_face_name(rest)
    for prefix, public in _PUBLIC_PREFIXES.items():
        if name.startswith(prefix):
            return public + name.removeprefix(prefix)
    return "prompter_" + rest


def guess_config(checkpoint: PublishedCheckpoint) -> ModelConfig:
    """Return the configuration of the preset whose SAM and SigLIP have the same width.

    Raises:
        BadInputError: the checkpoint has no SAM, or no preset has its width.
    """
    path, tokens = checkpoint.path, "clip_text_encoder.model.embeddings.token_embedding.weight"
    if _PATCHES not in checkpoint.tensors:
        raise BadInputError(f"'{path}' is not an RSRefSeg checkpoint in the public layout: it lacks '{_PATCHES}'")
    width = tuple(checkpoint.tensors[_PATCHES].shape[:1])
    text_width = tuple(checkpoint.tensors[tokens].shape[1:]) if tokens in checkpoint.tensors else None
    for config in map(model_config, (Preset.B, Preset.L, Preset.S)):
        if width == (config.sam.embed_dim,) and text_width in (None, (config.siglip.text.hidden_size,)):
            return config
    raise BadInputError(
        f"'{path}' has a SAM of width {width} and a SigLIP of width {text_width}, which no preset has: give "
        "--preset, or its bases with --sam and --siglip"
    )


def _is_unused(name: str) -> bool:
    """Return whether a public tensor is not needed: vision pooling head, position ids, second encoding, classifiers."""
    return name == _OTHER or name.startswith(_TRAINING_ONLY) or _is_left_out(name)


def _is_left_out(name: str) -> bool:
    tower = re.sub(r"^clip_(vision|text)_encoder\.model\.", r"\1_model.", name)
    return tower != name and siglip_folder.is_unused(tower)


def _fold_biases(state: State) -> None:
    """Subtract the bias of a convolution from the mean of the following batch norm, in place; equal in eval mode."""
    for name in list(state):
        found = _CONVOLUTION_BIAS.match(name)
        mean = f"{found[1]}.bn.running_mean" if found is not None else ""
        if mean in state and state[mean].shape == state[name].shape:
            state[mean] = state[mean].double() - state.pop(name).double()


def fold_adapters(state: State, alpha: float | None, path: Path) -> int:
    """Add every ``lora_B @ lora_A`` to its weight, scaled by alpha / rank (Hu et al. 2021, section 4.1), in place.

    Linear layers have A (r, in) and B (out, r); convolutions have A (r, in, h, w) and B (out, r, 1, 1).
    Returns the number of adapters.
    """
    adapters: dict[str, State] = {}
    for name in list(state):
        if (found := _ADAPTER.match(name)) is None:
            continue
        halves = adapters.setdefault(found["module"], {})
        if found["half"] in halves:
            raise BadInputError(f"'{path}': '{found['module']}' has two LoRA adapters: merge them where it was trained")
        halves[found["half"]] = state.pop(name)
    for module, halves in adapters.items():
        name = f"{module}.weight"
        if len(halves) < 2 or name not in state:
            missing = name if len(halves) == 2 else f"{module}.lora_{'B' if 'A' in halves else 'A'}"
            raise BadInputError(f"'{path}' has a LoRA adapter without '{missing}': the checkpoint is incomplete")
        state[name] = _folded(state[name], halves["A"], halves["B"], alpha, f"'{path}': the LoRA adapter of '{name}'")
    # Training adapts a kind of module in all layers, so a file without one of these adapters is not whole.
    kinds = {_LAYER.sub(r".\1.*.", module) for module in adapters}
    for module in sorted(name.removesuffix(".weight") for name in state if name.endswith(".weight")):
        if module not in adapters and _LAYER.sub(r".\1.*.", module) in kinds:
            raise BadInputError(f"'{path}' has no LoRA adapter for '{module}', but for other layers: it is incomplete")
    return len(adapters)


def _folded(weight: Tensor, a: Tensor, b: Tensor, alpha: float | None, what: str) -> Tensor:
    rank = a.shape[0] if a.ndim else 0
    is_pair = min(weight.ndim, a.ndim, b.ndim) >= 2 and rank >= 1 and a.shape[1:] == weight.shape[1:]
    if not is_pair or b.numel() != weight.shape[0] * rank or b.shape[:2] != (weight.shape[0], rank):
        shapes = f"{tuple(b.shape)} and {tuple(a.shape)}, its weight {tuple(weight.shape)}"
        raise BadInputError(f"{what} has shapes {shapes}")
    if any(tensor.dtype not in FLOAT_DTYPES for tensor in (weight, a, b)):
        raise BadInputError(f"{what} or its weight is not floating-point: save it as float32")
    scale = 1.0 if alpha is None else alpha / rank
    return weight.float() + scale * (b.float().flatten(1) @ a.float().flatten(1)).view_as(weight)
