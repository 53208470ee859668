"""RSRefSeg as a composition of five stages, shared by training, the PyTorch reference and the exporter."""

from typing import NamedTuple

import torch
from torch import Tensor, nn

from rsrefseg.engines.bundle.contracts import Geometry, Stage

from .config import ModelConfig
from .prompter import AttnPrompter
from .rsrefseg2.prompter import CascadedPrompter
from .rsrefseg2.sam2 import Sam2Decoder, Sam2Encoder
from .sam import SamDecoder, SamEncoder
from .siglip import SiglipText, SiglipVision


class ImageFeatures(NamedTuple):
    """Features of N images, float32: clip_features (N, T, C), and SAM's image_embedding (N, D, g, g).

    ``high_resolution`` has SAM 2's maps (N, D / 4, 2g, 2g) and (N, D / 8, 4g, 4g); SAM has none.
    """

    clip_features: Tensor
    image_embedding: Tensor
    high_resolution: tuple[Tensor, ...] = ()


class Prediction(NamedTuple):
    """Outputs for P phrases: mask_logits and mask_prompt (the coarse logit map), both (P, 1, 4g, 4g) float32."""

    mask_logits: Tensor
    mask_prompt: Tensor


class RSRefSeg(nn.Module):
    """Referring segmentation of remote-sensing images (paper, section II and equation 1), or RSRefSeg 2."""

    siglip_vision: SiglipVision
    siglip_text: SiglipText
    attn_prompter: AttnPrompter | CascadedPrompter
    sam_encoder: SamEncoder | Sam2Encoder
    sam_decoder: SamDecoder | Sam2Decoder

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        for stage in Stage:
            self.add_module(stage.value, build_stage(stage, config))
        self.refresh_position_encodings()

    def refresh_position_encodings(self) -> None:
        """Sample SAM's positional encoding on the grids that use it. Call this after loading SAM weights."""
        prompt_encoder = self.sam_decoder.prompt_encoder
        side = self.config.siglip.grid_size
        if isinstance(self.attn_prompter, AttnPrompter):
            self.attn_prompter.grid_encoding.copy_(prompt_encoder.pe_layer((side, side)).unsqueeze(0))
        self.sam_decoder.position_encoding.copy_(prompt_encoder.get_dense_pe())

    def stage(self, stage: Stage) -> nn.Module:
        """Return the module that computes ``stage``."""
        module = getattr(self, stage.value)
        assert isinstance(module, nn.Module)
        return module

    def encode_image(self, image: Tensor) -> ImageFeatures:
        """Encode images, (N, 3, S, S) uint8 RGB, with both image towers."""
        maps = self.sam_encoder(image)
        embedding, *fine = maps if isinstance(maps, tuple) else (maps,)
        return ImageFeatures(self.siglip_vision(image), embedding, tuple(fine))

    def segment(
        self, features: ImageFeatures, input_ids: Tensor, token_mask: Tensor, image_index: Tensor | None = None
    ) -> Prediction:
        """Segment P phrases in encoded images.

        Args:
            features: features of N images.
            input_ids: (P, L) int64.
            token_mask: (P, L) bool.
            image_index: (P,) int64, index of the image of each phrase; None for a single image.

        Returns:
            The prediction for each phrase.
        """
        clip_features, image_embedding, fine = features
        if image_index is not None:
            # index_select, not features[index]: the backward pass of the latter sums repeated indices in any order.
            clip_features = clip_features.index_select(0, image_index)
            image_embedding = image_embedding.index_select(0, image_index)
            fine = tuple(each.index_select(0, image_index) for each in fine)
        word_features, sentence_feature = self.siglip_text(input_ids, token_mask)
        sparse_prompts, mask_prompt = self.attn_prompter(clip_features, word_features, sentence_feature, token_mask)
        return Prediction(self.sam_decoder(image_embedding, *fine, sparse_prompts, mask_prompt), mask_prompt)

    def forward(
        self, image: Tensor, input_ids: Tensor, token_mask: Tensor, image_index: Tensor | None = None
    ) -> Prediction:
        """Run ``encode_image`` and then ``segment``."""
        return self.segment(self.encode_image(image), input_ids, token_mask, image_index)


def geometry(config: ModelConfig) -> Geometry:
    """Return the sizes of the stages' tensors that follow from a configuration."""
    return Geometry(
        image_size=config.image_size,
        clip_tokens=config.siglip.grid_size**2,
        clip_channels=config.siglip.vision.hidden_size,
        text_length=config.siglip.text_length,
        prompt_tokens=config.prompt_tokens,
        prompt_channels=config.sam.prompt_channels,
        embedding_grid=config.sam.grid_size,
        mask_grid=config.sam.mask_size,
        high_resolution=config.rsrefseg2 is not None,
    )


def build_stage(stage: Stage, config: ModelConfig) -> nn.Module:
    """Build the module of one stage with random weights."""
    second = config.rsrefseg2
    match stage:
        case Stage.SIGLIP_VISION:
            return SiglipVision(config.siglip, config.preprocessing)
        case Stage.SIGLIP_TEXT:
            return SiglipText(config.siglip, config.text_padding)
        case Stage.ATTN_PROMPTER:
            return AttnPrompter(config) if second is None else CascadedPrompter(config, second)
        case Stage.SAM_ENCODER:
            if second is not None:
                return Sam2Encoder(config.sam, second, config.preprocessing)
            return SamEncoder(config.sam, config.preprocessing)
        case Stage.SAM_DECODER:
            return SamDecoder(config.sam, config.dense_prompt) if second is None else Sam2Decoder(config.sam, second)


def build_model(config: ModelConfig, seed: int = 0, device: str = "cpu") -> RSRefSeg:
    """Build a randomly initialised model in eval mode; the same seed yields the same weights.

    ``device="meta"`` builds the structure without allocating memory for weights.
    """
    with torch.random.fork_rng(devices=[]), torch.device(device):
        torch.manual_seed(seed)
        return RSRefSeg(config).eval()
