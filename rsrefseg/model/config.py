"""What a model is: frozen, validated configurations and the three presets."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, get_args

from msgspec import Meta, Struct

from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.text import Padding

# Width of the MLPs in SAM's image encoder, as a multiple of its embedding.
SAM_MLP_RATIO = 4


class Preset(StrEnum):
    """Named model sizes. ``b`` and ``l`` are the paper's RSRefSeg-b and RSRefSeg-l; ``tiny`` runs anywhere."""

    TINY = "tiny"
    B = "b"
    L = "l"


@dataclass(frozen=True, slots=True)
class TransformerConfig:
    """Width and depth of one SigLIP tower."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int

    def __post_init__(self) -> None:
        _check_positive(self)
        if self.hidden_size % self.num_attention_heads:
            raise BadInputError(
                f"hidden_size {self.hidden_size} cannot be split over {self.num_attention_heads} attention heads"
            )


@dataclass(frozen=True, slots=True)
class SiglipConfig:
    """Both SigLIP towers. Lengths in pixels and tokens."""

    image_size: int
    patch_size: int
    vision: TransformerConfig
    text: TransformerConfig
    vocab_size: int
    text_length: int = 64
    pad_token_id: int = 1

    def __post_init__(self) -> None:
        _check_positive(self, besides=("pad_token_id",))
        if self.patch_size > self.image_size:
            raise BadInputError(f"patch_size {self.patch_size} is larger than image_size {self.image_size}")
        if self.vision.hidden_size != self.text.hidden_size:
            sizes = f"{self.vision.hidden_size} and {self.text.hidden_size}"
            raise BadInputError(
                f"both SigLIP towers must have one hidden_size, not {sizes}: their features are compared"
            )
        if not 0 <= self.pad_token_id < self.vocab_size:
            raise BadInputError(f"pad_token_id {self.pad_token_id} is outside the {self.vocab_size} tokens")

    @property
    def grid_size(self) -> int:
        """Tokens along one side of the vision feature map."""
        return self.image_size // self.patch_size


@dataclass(frozen=True, slots=True)
class SamConfig:
    """SAM's image encoder, prompt encoder and mask decoder.

    ``decoder_norm_epsilon`` is that of the mask decoder's layer norms: 1e-5 in segment-anything, 1e-6 in the Hugging
    Face port, which moves mask logits by about 1e-4 of their maximum.
    """

    image_size: int
    embed_dim: int
    depth: int
    num_heads: int
    global_attn_indexes: tuple[int, ...]
    window_size: int = 14
    patch_size: int = 16
    prompt_channels: int = 256
    decoder_mlp_dim: int = 2048
    decoder_num_heads: int = 8
    decoder_norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        _check_positive(self)
        if not 0 < self.decoder_norm_epsilon < 1:
            raise BadInputError(f"decoder_norm_epsilon must lie in (0, 1), not {self.decoder_norm_epsilon}")
        if self.image_size % self.patch_size:
            raise BadInputError(f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}")
        if self.embed_dim % self.num_heads:
            raise BadInputError(f"embed_dim {self.embed_dim} cannot be split over {self.num_heads} attention heads")
        # The decoder's attention works on half the channels, its upscaling ends with an eighth of them.
        if self.prompt_channels % 8 or self.prompt_channels // 2 % self.decoder_num_heads:
            raise BadInputError(
                f"prompt_channels {self.prompt_channels} must be a multiple of 8, and half of it of the "
                f"{self.decoder_num_heads} decoder heads"
            )
        if not set(self.global_attn_indexes) <= set(range(self.depth)):
            raise BadInputError(f"global_attn_indexes {self.global_attn_indexes} are beyond the {self.depth} blocks")

    @property
    def grid_size(self) -> int:
        """Tokens along one side of the image embedding."""
        return self.image_size // self.patch_size

    @property
    def mask_size(self) -> int:
        """Pixels along one side of the mask logits (SAM upsamples its grid four times)."""
        return 4 * self.grid_size


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """A whole RSRefSeg.

    ``dense_prompt`` feeds the global activation map to SAM's mask-prompt input (paper, eq. 4); without it SAM's learned
    "no mask" embedding is used. ``text_padding`` is told in ``Tokenizer``.
    """

    preset: str
    siglip: SiglipConfig
    sam: SamConfig
    dense_prompt: bool = True
    text_padding: Padding = "fixed"

    def __post_init__(self) -> None:
        if self.text_padding not in get_args(Padding):
            known = ", ".join(get_args(Padding))
            raise BadInputError(f"unknown text padding '{self.text_padding}': choose one of {known}")

    @property
    def prompt_grid_size(self) -> int:
        """Side of the sparse prompt grid: the SigLIP grid halved twice, rounding up (27 -> 14 -> 7)."""
        return -(-self.siglip.grid_size // 4)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON-able form; ``from_dict`` reads it back."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> "ModelConfig":
        """Read what ``to_dict`` gave.

        Raises:
            BadInputError: a field is missing, unknown or inconsistent.
        """
        try:
            siglip, sam = dict(value["siglip"]), dict(value["sam"])
            siglip["vision"] = TransformerConfig(**siglip["vision"])
            siglip["text"] = TransformerConfig(**siglip["text"])
            sam["global_attn_indexes"] = tuple(sam["global_attn_indexes"])
            rest = {key: item for key, item in value.items() if key not in ("siglip", "sam")}
            return cls(siglip=SiglipConfig(**siglip), sam=SamConfig(**sam), **rest)
        except (KeyError, TypeError, ValueError) as error:
            raise BadInputError(f"the model configuration cannot be read: {error}") from error


class LoraSettings(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Low-rank adaptation (paper, section II-B; rank and modules as in the public configuration)."""

    rank: Annotated[int, Meta(ge=1)] = 16
    alpha: Annotated[int, Meta(ge=1)] = 16
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.1


def _check_positive(config: TransformerConfig | SiglipConfig | SamConfig, besides: tuple[str, ...] = ()) -> None:
    """Refuse a whole number below 1 in any field not named in ``besides``."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if field.type is int and field.name not in besides and not (type(value) is int and value >= 1):
            raise BadInputError(f"{field.name} must be a whole number of at least 1, not {value!r}")


def _so400m() -> SiglipConfig:
    """``siglip-so400m-patch14-384`` (paper, section III-C)."""
    tower = TransformerConfig(hidden_size=1152, intermediate_size=4304, num_hidden_layers=27, num_attention_heads=16)
    return SiglipConfig(image_size=384, patch_size=14, vision=tower, text=tower, vocab_size=32000)


def model_config(preset: str) -> ModelConfig:
    """The configuration of a preset by name.

    Raises:
        BadInputError: no preset has that name.
    """
    if preset == Preset.TINY:
        return ModelConfig(
            preset=Preset.TINY,
            siglip=SiglipConfig(
                image_size=192,
                patch_size=12,
                vision=TransformerConfig(
                    hidden_size=128, intermediate_size=384, num_hidden_layers=4, num_attention_heads=4
                ),
                text=TransformerConfig(
                    hidden_size=128, intermediate_size=256, num_hidden_layers=2, num_attention_heads=4
                ),
                vocab_size=512,
            ),
            sam=SamConfig(
                image_size=256,
                embed_dim=144,
                depth=6,
                num_heads=4,
                global_attn_indexes=(2, 5),
                window_size=6,
                prompt_channels=128,
                decoder_mlp_dim=256,
                decoder_num_heads=4,
            ),
        )
    if preset == Preset.B:
        sam = SamConfig(image_size=1024, embed_dim=768, depth=12, num_heads=12, global_attn_indexes=(2, 5, 8, 11))
        return ModelConfig(preset=Preset.B, siglip=_so400m(), sam=sam)
    if preset == Preset.L:
        sam = SamConfig(image_size=1024, embed_dim=1024, depth=24, num_heads=16, global_attn_indexes=(5, 11, 17, 23))
        return ModelConfig(preset=Preset.L, siglip=_so400m(), sam=sam)
    raise BadInputError(f"unknown preset '{preset}': choose one of {', '.join(Preset)}")
