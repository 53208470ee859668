"""Model configurations, validated at construction, and the presets."""

from enum import StrEnum
from operator import mod
from typing import Annotated, get_args

import numpy as np
import numpy.typing as npt
from msgspec import Meta
from msgspec.structs import replace

from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.images.images import stretch
from rsrefseg.engines.records import Record
from rsrefseg.engines.text import Padding

from .preprocessing import PROFILES, RSREFSEG2, Preprocessing

# Width of the MLPs in SAM's image encoder, as a multiple of ``embed_dim``.
SAM_MLP_RATIO = 4
# Name of a configuration that is none of the presets.
CUSTOM = "custom"
_Count = Annotated[int, Meta(ge=1)]


class Preset(StrEnum):
    """Named model sizes: ``b`` and ``l`` are the paper's RSRefSeg-b and -l, ``s`` has SigLIP's base size.

    ``rsrefseg2`` and its small form ``rsrefseg2-tiny`` have the architecture of RSRefSeg 2.
    """

    TINY = "tiny"
    S = "s"
    B = "b"
    L = "l"
    RSREFSEG2 = "rsrefseg2"
    RSREFSEG2_TINY = "rsrefseg2-tiny"


class TransformerConfig(Record, frozen=True):
    """Width and depth of one SigLIP tower."""

    hidden_size: _Count
    intermediate_size: _Count
    num_hidden_layers: _Count
    num_attention_heads: _Count

    def __post_init__(self) -> None:
        _check_heads(self.hidden_size, self.num_attention_heads)


class SiglipConfig(Record, frozen=True):
    """Both SigLIP towers. Image and patch sizes are in pixels, ``text_length`` in tokens."""

    image_size: _Count
    patch_size: _Count
    vision: TransformerConfig
    text: TransformerConfig
    vocab_size: _Count
    text_length: _Count = 64
    pad_token_id: Annotated[int, Meta(ge=0)] = 1

    def __post_init__(self) -> None:
        if self.patch_size > self.image_size:
            raise BadInputError(f"patch_size {self.patch_size} is larger than image_size {self.image_size}")
        if self.vision.hidden_size != self.text.hidden_size:
            raise BadInputError("both SigLIP towers must have one hidden_size: their features are compared")
        if self.pad_token_id >= self.vocab_size:
            raise BadInputError(f"pad_token_id {self.pad_token_id} is outside the {self.vocab_size} tokens")

    @property
    def grid_size(self) -> int:
        """Tokens along one side of the vision feature map."""
        return self.image_size // self.patch_size


class SamConfig(Record, frozen=True):
    """SAM's image encoder, prompt encoder and mask decoder.

    ``decoder_norm_epsilon`` is the epsilon of the mask decoder's layer norms: 1e-5 in segment-anything, 1e-6 in the
    Hugging Face port. The two values change mask logits by about 1e-4 of their maximum.
    """

    image_size: _Count
    embed_dim: _Count
    depth: _Count
    num_heads: _Count
    global_attn_indexes: tuple[int, ...]
    window_size: _Count = 14
    patch_size: _Count = 16
    prompt_channels: _Count = 256
    decoder_mlp_dim: _Count = 2048
    decoder_num_heads: _Count = 8
    decoder_norm_epsilon: Annotated[float, Meta(gt=0, lt=1)] = 1e-5

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise BadInputError(f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        _check_heads(self.embed_dim, self.num_heads)
        # The decoder attends over half of the channels, and its upscaling outputs an eighth of them.
        if self.prompt_channels % 8 or self.prompt_channels // 2 % self.decoder_num_heads:
            raise BadInputError(
                f"prompt_channels {self.prompt_channels} must be a multiple of 8, and half of it a multiple of the "
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


class RSRefSeg2Config(Record, frozen=True):
    """The parts of RSRefSeg 2 that RSRefSeg lacks: SAM 2.1's Hiera image encoder and the cascaded prompter.

    The four stages of Hiera work on grids of S / 4, S / 8, S / 16 and S / 32 tokens a side, each with twice the
    channels and heads of the one before; ``SamConfig`` has those of the first, and the number of all blocks.

    Attributes:
        blocks: number of blocks in each stage.
        windows: side of the attention windows in each stage, tokens; must divide the grid.
        background: side of the position embedding that is resized to the first grid, tokens.
        prompter_width: channels of the prompter's attention and MLPs.
        prompter_heads: attention heads of the prompter.
        prompts: number of sparse prompts, a square number.
        choose_mask: whether an unstable first mask is replaced by one of the other three, as published. Training
            changes only the first mask, so this must be false if the others never were trained.
    """

    blocks: tuple[int, int, int, int]
    windows: tuple[int, int, int, int]
    background: _Count = 7
    prompter_width: _Count = 512
    prompter_heads: _Count = 8
    prompts: _Count = 9
    choose_mask: bool = True

    def __post_init__(self) -> None:
        _check_heads(self.prompter_width, self.prompter_heads)

    def check(self, sam: SamConfig) -> None:
        """Check that the stages fit the sizes of ``sam``.

        Raises:
            BadInputError: the blocks are not ``sam.depth`` in all, or windows do not divide the grids.
        """
        if sum(self.blocks) != sam.depth:
            raise BadInputError(f"{self.blocks} blocks are {sum(self.blocks)} in all, not {sam.depth}")
        grids = [4 * sam.grid_size >> stage for stage in range(4)]
        # The first block of a stage has the windows of the stage before and halves their queries.
        if any(window % 2 for window in self.windows[:3]) or any(map(mod, grids, self.windows)):
            raise BadInputError(f"windows of {self.windows} tokens do not divide grids of {tuple(grids)}")


class ModelConfig(Record, frozen=True):
    """Configuration of a complete RSRefSeg model, or of an RSRefSeg 2 if ``rsrefseg2`` is given.

    ``dense_prompt`` feeds the global activation map to SAM's mask-prompt input (paper, eq. 4); if false, the model uses
    SAM's learned "no mask" embedding. See ``Tokenizer`` for ``text_padding``.
    """

    preset: str
    siglip: SiglipConfig
    sam: SamConfig
    dense_prompt: bool = True
    text_padding: Padding = "fixed"
    preprocessing: Preprocessing = Preprocessing()
    rsrefseg2: RSRefSeg2Config | None = None

    def __post_init__(self) -> None:
        if self.rsrefseg2 is not None:
            self.rsrefseg2.check(self.sam)
            if self.text_padding != "longest" or not self.dense_prompt:
                raise BadInputError("RSRefSeg 2 always has the text padding 'longest' and a dense prompt")
            if self.image_size != self.sam.image_size:
                raise BadInputError(
                    f"RSRefSeg 2 reads images of SAM's {self.sam.image_size} px, not {self.image_size} px: "
                    "leave out image_size, or choose another --profile"
                )
        if self.text_padding not in get_args(Padding):
            raise BadInputError(
                f"unknown text padding '{self.text_padding}': choose one of {', '.join(get_args(Padding))}"
            )

    @property
    def image_size(self) -> int:
        """Side of the square input of both image towers, px."""
        return self.preprocessing.image_size or self.sam.image_size

    def stretch(self, image: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
        """Resize an image, (H, W, 3) uint8 RGB, to the input of both image towers, (3, S, S) uint8."""
        return stretch(image, self.image_size, self.preprocessing.resize, self.preprocessing.keep_aspect)

    @property
    def architecture(self) -> str:
        """``rsrefseg`` or ``rsrefseg2``."""
        return "rsrefseg" if self.rsrefseg2 is None else "rsrefseg2"

    @property
    def prompt_tokens(self) -> int:
        """Number of sparse prompts; RSRefSeg's are the SigLIP grid halved twice, rounding up (27 -> 14 -> 7)."""
        return self.rsrefseg2.prompts if self.rsrefseg2 is not None else (-(-self.siglip.grid_size // 4)) ** 2


class LoraSettings(Record, frozen=True, kw_only=True):
    """Low-rank adaptation (paper, section II-B; rank and modules as in the public configuration)."""

    rank: _Count = 16
    alpha: _Count = 16
    dropout: Annotated[float, Meta(ge=0, lt=1)] = 0.1


def _check_heads(channels: int, heads: int) -> None:
    if channels % heads:
        raise BadInputError(f"{channels} channels cannot be split over {heads} attention heads")


# ``siglip-so400m-patch14-384`` (paper, section III-C)
_SO400M_TOWER = TransformerConfig(1152, 4304, num_hidden_layers=27, num_attention_heads=16)
_SO400M = SiglipConfig(384, 14, vision=_SO400M_TOWER, text=_SO400M_TOWER, vocab_size=32000)
# ``siglip-base-patch16-384``
_BASE_TOWER = TransformerConfig(768, 3072, num_hidden_layers=12, num_attention_heads=12)
_BASE = SiglipConfig(384, 16, vision=_BASE_TOWER, text=_BASE_TOWER, vocab_size=32000)
_VIT_B = SamConfig(1024, 768, depth=12, num_heads=12, global_attn_indexes=(2, 5, 8, 11))


def model_config(preset: str) -> ModelConfig:
    """Return the configuration of a preset.

    Raises:
        BadInputError: no preset has that name.
    """
    match preset:
        case Preset.TINY:
            siglip = SiglipConfig(
                image_size=192,
                patch_size=12,
                vision=TransformerConfig(128, 384, num_hidden_layers=4, num_attention_heads=4),
                text=TransformerConfig(128, 256, num_hidden_layers=2, num_attention_heads=4),
                vocab_size=512,
            )
            sam = SamConfig(
                image_size=256,
                embed_dim=144,
                depth=6,
                num_heads=4,
                global_attn_indexes=(2, 5),
                window_size=6,
                prompt_channels=128,
                decoder_mlp_dim=256,
                decoder_num_heads=4,
            )
        case Preset.RSREFSEG2:
            # ``siglip2-so400m-patch16-512`` and ``sam2.1-hiera-large``.
            siglip = SiglipConfig(512, 16, _SO400M_TOWER, _SO400M_TOWER, vocab_size=256000, pad_token_id=0)
            sam = SamConfig(1024, 144, depth=48, num_heads=2, global_attn_indexes=(23, 33, 43))
            return _rsrefseg2(preset, siglip, sam, RSRefSeg2Config((2, 6, 36, 4), (8, 4, 16, 8)))
        case Preset.RSREFSEG2_TINY:
            tower = TransformerConfig(96, 192, num_hidden_layers=2, num_attention_heads=4)
            siglip = SiglipConfig(128, 8, tower, tower, vocab_size=512)
            sam = SamConfig(
                256, 32, depth=7, num_heads=1, global_attn_indexes=(4,),
                prompt_channels=64, decoder_mlp_dim=128, decoder_num_heads=2,
            )  # fmt: skip
            parts = RSRefSeg2Config((1, 2, 3, 1), (8, 4, 8, 4), prompter_width=64, prompter_heads=4)
            return _rsrefseg2(preset, siglip, sam, parts)
        case Preset.S:
            siglip, sam = _BASE, _VIT_B
        case Preset.B:
            siglip, sam = _SO400M, _VIT_B
        case Preset.L:
            siglip, sam = _SO400M, SamConfig(1024, 1024, depth=24, num_heads=16, global_attn_indexes=(5, 11, 17, 23))
        case _:
            raise BadInputError(f"unknown preset '{preset}': choose one of {', '.join(Preset)}")
    return ModelConfig(Preset(preset), siglip, sam)


def _rsrefseg2(preset: str, siglip: SiglipConfig, sam: SamConfig, parts: RSRefSeg2Config) -> ModelConfig:
    profile = PROFILES[RSREFSEG2]
    return ModelConfig(preset, siglip, sam, text_padding="longest", preprocessing=profile, rsrefseg2=parts)


def named(config: ModelConfig, default: ModelConfig) -> ModelConfig:
    """Return ``config`` with the name of ``default`` or of a preset of its sizes, else ``custom``."""
    known = (default, *map(model_config, Preset))
    name = next((one.preset for one in known if (one.siglip, one.sam) == (config.siglip, config.sam)), CUSTOM)
    return replace(config, preset=name)
