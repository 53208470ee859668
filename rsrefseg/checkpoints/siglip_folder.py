"""Maps SigLIP's published weights to RSRefSeg, from a Hugging Face folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from msgspec.structs import replace
from torch import Tensor
from transformers import SiglipConfig as PublishedConfig

from rsrefseg.engines.errors import BadInputError

from ..model.config import ModelConfig, SiglipConfig, TransformerConfig
from ..model.preprocessing import Preprocessing
from .key_matching import Matches, match
from .tensor_files import read_json_object, read_weights
from .tokenizer_file import TOKENIZER_CONFIG_NAME, pad_token_id

CONFIG_NAME = "config.json"
PREPROCESSOR_NAME = "preprocessor_config.json"
# Files that SigLIP needs from its repository: one of each group. ``SIGLIP_SETTINGS`` are read where they exist.
SIGLIP_FILES = ((CONFIG_NAME,), ("model.safetensors",), ("tokenizer.json", "spiece.model"))
SIGLIP_SETTINGS = (PREPROCESSOR_NAME, TOKENIZER_CONFIG_NAME)
_UNUSED = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")
_TOWER_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
_POOLING_HEAD = "vision_model.head."
_PREFIXES = {"siglip_vision.": "vision_model.", "siglip_text.": "text_model.", "attn_prompter.logit_": "logit_"}


def match_siglip(folder: Path, config: ModelConfig, expected: Mapping[str, Tensor]) -> Matches:
    """Check the configuration in a folder and match every tensor of its weights.

    ``folder`` has ``config.json`` and ``model.safetensors`` (or shards with their index, or ``pytorch_model.bin``).
    ``expected`` is the state dict of a model of this ``config``; its tensors may be on the meta device.

    Raises:
        BadInputError: the folder cannot be read, or is not a SigLIP of this configuration.
    """
    published = _read_config(folder)
    for (part, name), value in _needed(config.siglip).items():
        if (found := _value(published, part, name)) != value:
            raise BadInputError(
                f"'{folder / CONFIG_NAME}': {part}.{name} is {found!r}, preset '{config.preset}' needs {value!r}: give "
                "the SigLIP that belongs to this preset, or leave out --preset to take the sizes of the files"
            )
    ours = {name: tensor for name, tensor in expected.items() if name.startswith(tuple(_PREFIXES))}
    what = f"SigLIP for preset '{config.preset}'"
    return match(ours, _published_name, read_weights(folder), is_unused, folder, what)


def is_unused(name: str) -> bool:
    """Return whether RSRefSeg does not need a published tensor: the vision pooling head and position ids."""
    return name.startswith(_POOLING_HEAD) or name in _UNUSED


def _published_name(name: str) -> str:
    prefix = next(prefix for prefix in _PREFIXES if name.startswith(prefix))
    return _PREFIXES[prefix] + name.removeprefix(prefix)


def read_siglip(folder: Path) -> SiglipConfig:
    """Return the sizes of both towers from ``config.json``, and the padding token from the tokenizer's files.

    Raises:
        BadInputError: the folder cannot be read or is not a SigLIP or SigLIP 2 of fixed resolution.
    """
    published = _read_config(folder)

    def tower(part: str) -> TransformerConfig:
        return TransformerConfig(**{name: _value(published, part, name) for name in _TOWER_SIZES})

    return SiglipConfig(
        image_size=_value(published, "vision_config", "image_size"),
        patch_size=_value(published, "vision_config", "patch_size"),
        vision=tower("vision_config"),
        text=tower("text_config"),
        vocab_size=_value(published, "text_config", "vocab_size"),
        text_length=_value(published, "text_config", "max_position_embeddings"),
        pad_token_id=pad_token_id(folder),
    )


def read_normalization(folder: Path, default: Preprocessing) -> Preprocessing:
    """Return ``default`` with SigLIP's normalisation from ``preprocessor_config.json``, if the folder has that file.

    Raises:
        BadInputError: the file is damaged.
    """
    path = folder / PREPROCESSOR_NAME
    if not path.is_file():
        return default
    document = read_json_object(path)
    if document.get("do_normalize", True) is not True:
        return replace(default, siglip_mean=(0.0,) * 3, siglip_std=(1.0,) * 3)
    values = {"siglip_mean": document.get("image_mean"), "siglip_std": document.get("image_std")}
    try:
        return Preprocessing.from_dict(default.to_dict() | values)
    except BadInputError as error:
        raise BadInputError(f"'{path}' has no usable image_mean and image_std: download it again") from error


def _value(published: PublishedConfig, part: str, name: str) -> Any:
    found = getattr(getattr(published, part), name, None)
    return found[0] if isinstance(found, list | tuple) and len(set(found)) == 1 else found


def _read_config(folder: Path) -> PublishedConfig:
    """Read ``config.json``: tensor shapes do not show heads, activation or patches."""
    if not folder.is_dir():
        wanted = f"{CONFIG_NAME}, model.safetensors, tokenizer"
        raise BadInputError(f"'{folder}' is not a folder: give a Hugging Face SigLIP folder ({wanted})")
    path = folder / CONFIG_NAME
    document = read_json_object(path)
    if document.get("model_type") != "siglip":
        raise BadInputError(f"'{path}' has model type {document.get('model_type')!r}, not 'siglip'")
    try:
        # The library's defaults for these two ids are outside SigLIP's vocabulary and cause a warning.
        text = (document.get("text_config") or {}) | {"bos_token_id": None, "eos_token_id": None}
        # Published files omit values that equal the library's defaults.
        return PublishedConfig(text_config=text, vision_config=document.get("vision_config"))
    except Exception as error:  # the library raises its own validation errors
        reason = " ".join(str(error).split())[:120]
        raise BadInputError(f"'{path}' is not a SigLIP configuration ({reason}): download it again") from error


def _needed(config: SiglipConfig) -> dict[tuple[str, str], Any]:
    needed: dict[tuple[str, str], Any] = {
        ("vision_config", "image_size"): config.image_size,
        ("vision_config", "patch_size"): config.patch_size,
        ("vision_config", "num_channels"): 3,
        ("text_config", "vocab_size"): config.vocab_size,
        ("text_config", "max_position_embeddings"): config.text_length,
        ("text_config", "projection_size"): config.vision.hidden_size,
    }
    for part, tower in (("vision_config", config.vision), ("text_config", config.text)):
        for name in _TOWER_SIZES:
            needed[part, name] = getattr(tower, name)
        # Every published SigLIP has these values, which RSRefSeg's towers use.
        needed |= {(part, "hidden_act"): "gelu_pytorch_tanh", (part, "layer_norm_eps"): 1e-6}
    return needed
