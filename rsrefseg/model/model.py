"""RSRefSeg: five stages, composed. Training, the torch reference and the exporter all run these same modules."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from rsrefseg.engines.bundle.contracts import Geometry, Stage

from .config import ModelConfig
from .prompter import AttnPrompter
from .sam import SamDecoder, SamEncoder
from .siglip import SiglipText, SiglipVision


class ImageFeatures(NamedTuple):
    """What an image contributes: clip_features (N, T, C) and image_embedding (N, D, g, g), float32."""

    clip_features: Tensor
    image_embedding: Tensor


class Prediction(NamedTuple):
    """What phrases get: mask_logits (P, 1, 4g, 4g) and mask_prompt (P, 1, 4g, 4g), the coarse logit map behind it."""

    mask_logits: Tensor
    mask_prompt: Tensor


class RSRefSeg(nn.Module):
    """Referring segmentation of remote-sensing images (paper, section II and equation 1)."""

    siglip_vision: SiglipVision
    siglip_text: SiglipText
    attn_prompter: AttnPrompter
    sam_encoder: SamEncoder
    sam_decoder: SamDecoder

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        for stage in Stage:
            self.add_module(stage.value, build_stage(stage, config))
        self.refresh_position_encodings()

    def refresh_position_encodings(self) -> None:
        """Sample SAM's positional encoding on both grids; call it after SAM weights were loaded from elsewhere."""
        prompt_encoder = self.sam_decoder.prompt_encoder
        side = self.config.siglip.grid_size
        self.attn_prompter.grid_encoding.copy_(prompt_encoder.pe_layer((side, side)).unsqueeze(0))
        self.sam_decoder.position_encoding.copy_(prompt_encoder.get_dense_pe())

    def stage(self, stage: Stage) -> nn.Module:
        """The module that computes ``stage``."""
        module = getattr(self, stage.value)
        assert isinstance(module, nn.Module)
        return module

    def encode_image(self, image: Tensor) -> ImageFeatures:
        """Both image towers on (N, 3, S, S) uint8 images."""
        return ImageFeatures(self.siglip_vision(image), self.sam_encoder(image))

    def segment(
        self, features: ImageFeatures, input_ids: Tensor, token_mask: Tensor, image_index: Tensor | None = None
    ) -> Prediction:
        """Ask P phrases of encoded images.

        Args:
            features: of N images.
            input_ids: (P, L) int64.
            token_mask: (P, L) bool.
            image_index: (P,) int64, which image each phrase asks about; None when there is one image.

        Returns:
            The prediction for each phrase.
        """
        clip_features, image_embedding = features
        if image_index is not None:
            # Not features[index]: where an image is asked twice, the threads of its backward pass add in any order.
            clip_features = clip_features.index_select(0, image_index)
            image_embedding = image_embedding.index_select(0, image_index)
        word_features, sentence_feature = self.siglip_text(input_ids, token_mask)
        sparse_prompts, mask_prompt = self.attn_prompter(clip_features, word_features, sentence_feature, token_mask)
        return Prediction(self.sam_decoder(image_embedding, sparse_prompts, mask_prompt), mask_prompt)

    def forward(
        self, image: Tensor, input_ids: Tensor, token_mask: Tensor, image_index: Tensor | None = None
    ) -> Prediction:
        """``encode_image``, then ``segment``."""
        return self.segment(self.encode_image(image), input_ids, token_mask, image_index)


def geometry(config: ModelConfig) -> Geometry:
    """The sizes of all tensors between stages."""
    return Geometry(
        image_size=config.sam.image_size,
        clip_tokens=config.siglip.grid_size**2,
        clip_channels=config.siglip.vision.hidden_size,
        text_length=config.siglip.text_length,
        prompt_tokens=config.prompt_grid_size**2,
        prompt_channels=config.sam.prompt_channels,
        embedding_grid=config.sam.grid_size,
        mask_grid=config.sam.mask_size,
    )


def build_stage(stage: Stage, config: ModelConfig) -> nn.Module:
    """The module that computes one stage, with random weights."""
    match stage:
        case Stage.SIGLIP_VISION:
            return SiglipVision(config.siglip)
        case Stage.SIGLIP_TEXT:
            return SiglipText(config.siglip, config.text_padding)
        case Stage.ATTN_PROMPTER:
            return AttnPrompter(config)
        case Stage.SAM_ENCODER:
            return SamEncoder(config.sam)
        case Stage.SAM_DECODER:
            return SamDecoder(config.sam, config.dense_prompt)


def build_model(config: ModelConfig, seed: int = 0, device: str = "cpu") -> RSRefSeg:
    """A randomly initialised model in eval mode; the same seed gives the same weights.

    ``device="meta"`` builds the structure without memory, to be filled by a checkpoint.
    """
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        return RSRefSeg(config).eval()
