"""SigLIP's published weights into RSRefSeg, from a Hugging Face folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import SiglipConfig as PublishedConfig

from rsrefseg.engines.errors import BadInputError

from ..model.config import ModelConfig, SiglipConfig
from .key_matching import Matches, match
from .tensor_files import read_json_object, read_weights

CONFIG_NAME = "config.json"
# What a published SigLIP needs of its repository: (what it needs, any one of each group).
SIGLIP_FILES = ((CONFIG_NAME,), ("model.safetensors",), ("tokenizer.json", "spiece.model"))
# Every published SigLIP has these; RSRefSeg's towers are built with them.
_ACTIVATION = "gelu_pytorch_tanh"
_NORM_EPSILON = 1e-6
_COLOURS = 3
_UNUSED = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")
_POOLING_HEAD = "vision_model.head."
_PREFIXES = {"siglip_vision.": "vision_model.", "siglip_text.": "text_model."}
_SIMILARITY = {"attn_prompter.logit_scale": "logit_scale", "attn_prompter.logit_bias": "logit_bias"}


def match_siglip(folder: Path, config: ModelConfig, expected: Mapping[str, Tensor]) -> Matches:
    """Check a folder's configuration and account for every tensor of its weights.

    Args:
        folder: with ``config.json`` and ``model.safetensors`` (or shards with their index, or ``pytorch_model.bin``).
        config: of the model to fill.
        expected: that model's state dict; tensors may lie on the meta device.

    Raises:
        BadInputError: the folder cannot be read, or is no SigLIP of this configuration.
    """
    if not folder.is_dir():
        raise BadInputError(
            f"'{folder}' is no folder: give a Hugging Face SigLIP folder ({CONFIG_NAME}, model.safetensors, tokenizer)"
        )
    check_config(folder / CONFIG_NAME, config)
    ours = {
        name: tensor for name, tensor in expected.items() if name in _SIMILARITY or name.startswith(tuple(_PREFIXES))
    }
    what = f"SigLIP for preset '{config.preset}'"
    return match(ours, published_name, read_weights(folder), is_unused, folder, what)


def published_name(name: str) -> str:
    """The Hugging Face name of one of our tensors."""
    if name in _SIMILARITY:
        return _SIMILARITY[name]
    stage, dot, rest = name.partition(".")
    return _PREFIXES[stage + dot] + rest


def is_unused(name: str) -> bool:
    """Whether a published tensor is known and not needed: the vision tower's pooling head, and position numbers."""
    return name.startswith(_POOLING_HEAD) or name in _UNUSED


def check_config(path: Path, config: ModelConfig) -> None:
    """Refuse a SigLIP of another configuration. Sizes show in tensors; heads, activation and patches do not.

    Raises:
        BadInputError: names the first difference.
    """
    document = read_json_object(path)
    if document.get("model_type") != "siglip":
        raise BadInputError(f"'{path}' is of model type {document.get('model_type')!r}, not 'siglip'")
    try:
        # Published files leave out what equals the library's defaults.
        text = document.get("text_config") or {}
        # The library's defaults for these two lie outside SigLIP's vocabulary, which it would complain of.
        published = PublishedConfig(
            text_config=text | {"bos_token_id": None, "eos_token_id": None}, vision_config=document.get("vision_config")
        )
    except Exception as error:  # its validation raises exceptions of its own
        reason = " ".join(str(error).split())[:120]
        raise BadInputError(f"'{path}' is no SigLIP configuration ({reason}): download it again") from error
    for part, wanted in _wanted(config.siglip).items():
        for name, value in wanted.items():
            found = getattr(getattr(published, part), name, None)
            if isinstance(found, list | tuple) and len(set(found)) == 1:
                found = found[0]
            if found != value:
                raise BadInputError(
                    f"'{path}': {part}.{name} is {found!r}, preset '{config.preset}' needs {value!r}: give the SigLIP "
                    "that belongs to this preset"
                )


def _wanted(config: SiglipConfig) -> dict[str, dict[str, Any]]:
    towers: dict[str, dict[str, Any]] = {
        part: {
            "hidden_size": tower.hidden_size,
            "intermediate_size": tower.intermediate_size,
            "num_hidden_layers": tower.num_hidden_layers,
            "num_attention_heads": tower.num_attention_heads,
            "hidden_act": _ACTIVATION,
            "layer_norm_eps": _NORM_EPSILON,
        }
        for part, tower in (("vision_config", config.vision), ("text_config", config.text))
    }
    towers["vision_config"] |= {
        "image_size": config.image_size,
        "patch_size": config.patch_size,
        "num_channels": _COLOURS,
    }
    towers["text_config"] |= {
        "vocab_size": config.vocab_size,
        "max_position_embeddings": config.text_length,
        "projection_size": config.vision.hidden_size,
    }
    return towers
