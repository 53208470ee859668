"""Weights as users bring them, made small: SAM in both layouts, SigLIP, and the public RSRefSeg put together anew."""

import json
from pathlib import Path
from typing import Any

import torch
from msgspec.structs import replace
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SamConfig, SamModel, SiglipConfig, SiglipModel, SiglipTextModel, SiglipVisionModel

from rsrefseg.model.config import ModelConfig
from tests.support.small import small_config
from tests.support.words import write_word_tokenizer

PHRASES = ("the red box", "the white box on the left", "the blue box")


def brought_config(**overrides: Any) -> ModelConfig:
    """As the small model, but no two grids alike: SigLIP sees 7 x 7 patches of a resized picture, SAM 4 x 4."""
    config = small_config()
    return replace(config, siglip=replace(config.siglip, image_size=56), **overrides)


def randomize(module: nn.Module, seed: int = 0) -> Any:
    """Give every number of a module a value of its own, in a range that keeps activations alive."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            fan_in = tensor[0].numel() if tensor.ndim > 1 else 25
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * fan_in**-0.5)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_var.abs_().add_(0.5)
            part.num_batches_tracked.fill_(7)
        elif type(part).__name__.startswith("LayerNorm") or isinstance(part, nn.LayerNorm):
            part.weight.data.add_(1.0)
    return module.eval()


def segment_anything_sam(config: ModelConfig, seed: int = 1) -> Sam:
    """segment-anything's own model of a configuration's sizes."""
    sam = config.sam
    grid = (sam.grid_size, sam.grid_size)
    transformer = TwoWayTransformer(
        depth=2, embedding_dim=sam.prompt_channels, mlp_dim=sam.decoder_mlp_dim, num_heads=sam.decoder_num_heads
    )
    model = Sam(
        ImageEncoderViT(
            img_size=sam.image_size,
            patch_size=sam.patch_size,
            embed_dim=sam.embed_dim,
            depth=sam.depth,
            num_heads=sam.num_heads,
            out_chans=sam.prompt_channels,
            norm_layer=lambda width: nn.LayerNorm(width, eps=1e-6),
            use_rel_pos=True,
            window_size=sam.window_size,
            global_attn_indexes=sam.global_attn_indexes,
        ),
        PromptEncoder(sam.prompt_channels, grid, (sam.image_size, sam.image_size), 16),
        MaskDecoder(
            transformer_dim=sam.prompt_channels, transformer=transformer, iou_head_hidden_dim=sam.prompt_channels
        ),
    )
    return randomize(model, seed)


def port_config(config: ModelConfig) -> SamConfig:
    """The Hugging Face configuration of the same SAM."""
    sam = config.sam
    return SamConfig(
        vision_config={
            "hidden_size": sam.embed_dim,
            "output_channels": sam.prompt_channels,
            "num_hidden_layers": sam.depth,
            "num_attention_heads": sam.num_heads,
            "image_size": sam.image_size,
            "patch_size": sam.patch_size,
            "window_size": sam.window_size,
            "global_attn_indexes": list(sam.global_attn_indexes),
            "num_pos_feats": sam.prompt_channels // 2,
            "mlp_dim": 4 * sam.embed_dim,
        },
        prompt_encoder_config={
            "hidden_size": sam.prompt_channels,
            "image_size": sam.image_size,
            "patch_size": sam.patch_size,
        },
        mask_decoder_config={
            "hidden_size": sam.prompt_channels,
            "mlp_dim": sam.decoder_mlp_dim,
            "num_attention_heads": sam.decoder_num_heads,
            "iou_head_hidden_dim": sam.prompt_channels,
        },
    )


def port_sam(config: ModelConfig, seed: int = 1) -> SamModel:
    """The Hugging Face SAM of a configuration's sizes, its shared encoding shared."""
    model = randomize(SamModel(port_config(config)), seed)
    encoding = model.shared_image_embedding.positional_embedding
    model.prompt_encoder.shared_embedding.positional_embedding.data.copy_(encoding)
    return model


def siglip_config(config: ModelConfig) -> SiglipConfig:
    """The Hugging Face configuration of the same SigLIP."""
    siglip = config.siglip
    towers = {
        name: {
            "hidden_size": tower.hidden_size,
            "intermediate_size": tower.intermediate_size,
            "num_hidden_layers": tower.num_hidden_layers,
            "num_attention_heads": tower.num_attention_heads,
        }
        for name, tower in (("vision", siglip.vision), ("text", siglip.text))
    }
    vision = {"image_size": siglip.image_size, "patch_size": siglip.patch_size}
    text = {"vocab_size": siglip.vocab_size, "max_position_embeddings": siglip.text_length}
    return SiglipConfig(vision_config=towers["vision"] | vision, text_config=towers["text"] | text)


def siglip_model(config: ModelConfig, seed: int = 2) -> SiglipModel:
    """SigLIP of a configuration's sizes."""
    model = randomize(SiglipModel(siglip_config(config)), seed)
    model.logit_scale.data.fill_(1.5)
    model.logit_bias.data.fill_(-1.0)
    return model


def write_siglip_folder(folder: Path, config: ModelConfig, seed: int = 2) -> Path:
    """A SigLIP folder as the hub has it: configuration, weights, tokenizer."""
    folder.mkdir()
    save_file(siglip_model(config, seed).state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(siglip_config(config).to_dict()))
    write_word_tokenizer(folder / "tokenizer.json", PHRASES, config.siglip.vocab_size)
    return folder


class Held(nn.Module):
    """Something held under the name ``model``, and what stands beside it."""

    def __init__(self, model: nn.Module, **beside: Any) -> None:
        super().__init__()
        self.model = model
        for name, part in beside.items():
            setattr(self, name, part)


class ConvUnit(nn.Module):
    """Convolution, and where asked for batch norm and GELU, under the public names."""

    def __init__(self, channels: tuple[int, int], kernel: int, stride: int = 1, plain: bool = False) -> None:
        super().__init__()
        self.conv = nn.Conv2d(*channels, kernel, stride, kernel // 2, bias=plain)
        self.bn = None if plain else nn.BatchNorm2d(channels[1])

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x if self.bn is None else F.gelu(self.bn(x))


class PublicRSRefSeg(nn.Module):
    """The published model from transformers' and peft's parts, written from its description, sharing no code of ours.

    One image and one phrase at a time, the phrase not padded: what the published padding ("longest") gives a phrase
    that stands alone.
    """

    def __init__(self, config: ModelConfig, rank: int = 4, alpha: int = 4, seed: int = 3) -> None:
        super().__init__()
        self.config = config
        sam = port_sam(config, seed)
        siglip = siglip_config(config)
        text = Held(SiglipTextModel(siglip.text_config))
        text.logit_scale, text.logit_bias = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        channels, width = config.sam.prompt_channels, config.siglip.vision.hidden_size
        self.backbone = self._adapted(
            Held(sam.vision_encoder, shared_image_embedding=sam.shared_image_embedding),
            ["qkv", "proj", "lin1", "lin2", "neck.conv1", "neck.conv2"],
            rank,
            alpha,
        )
        attention = ["q_proj", "k_proj", "v_proj", "out_proj"]
        vision = Held(SiglipVisionModel(siglip.vision_config))
        self.clip_vision_encoder = self._adapted(vision, attention, rank, alpha)
        self.clip_text_encoder = self._adapted(text, [*attention, "model.head"], rank, alpha)
        self.sam_prompt_encoder = Held(sam.prompt_encoder)
        self.sam_mask_decoder = Held(sam.mask_decoder)
        self.prompter_down_channel = ConvUnit((3 * width, channels), 1)
        self.prompter_down_spatial = nn.Sequential(
            ConvUnit((channels, channels), 3, 2),
            ConvUnit((channels, channels), 3, 2),
            ConvUnit((channels, channels), 1, plain=True),
        )
        randomize(self, seed)
        encoding = sam.shared_image_embedding.positional_embedding
        self.sam_prompt_encoder.model.shared_embedding.positional_embedding.data.copy_(encoding)
        text.logit_scale.data.fill_(1.5)
        text.logit_bias.data.fill_(-1.0)

    @staticmethod
    def _adapted(module: nn.Module, targets: list[str], rank: int, alpha: int) -> nn.Module:
        adapters = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.1, target_modules=targets)
        return get_peft_model(module, adapters)

    def merged(self) -> "PublicRSRefSeg":
        """The adapters folded by peft, its wrappers gone."""
        for name in ("backbone", "clip_vision_encoder", "clip_text_encoder"):
            setattr(self, name, getattr(self, name).merge_and_unload())
        return self

    @torch.no_grad()
    def forward(self, image: Tensor, input_ids: Tensor) -> Tensor:
        """(3, S, S) uint8 and (L,) ids with their end token -> mask logits (4g, 4g)."""
        backbone, text = _inner(self.backbone), _inner(self.clip_text_encoder)
        vision, siglip = _inner(self.clip_vision_encoder), self.config.siglip
        picture = image[None].float()
        mean = torch.tensor([123.675, 116.28, 103.53]).view(1, 3, 1, 1)
        std = torch.tensor([58.395, 57.12, 57.375]).view(1, 3, 1, 1)
        embedding = backbone.model((picture - mean) / std).last_hidden_state

        size = (siglip.image_size, siglip.image_size)
        pixels = F.interpolate((picture / 255 - 0.5) / 0.5, size, mode="bilinear", align_corners=False)
        v = vision.model(pixels).last_hidden_state[0]
        words = text.model(input_ids[None])
        tokens, sentence = words.last_hidden_state[0], words.pooler_output[0]

        scale, bias = text.logit_scale.exp(), text.logit_bias
        unit = v / v.norm(dim=-1, keepdim=True)
        activation = torch.sigmoid(scale * unit @ (tokens / tokens.norm(dim=-1, keepdim=True)).T + bias)
        local = torch.stack([activation[:, index, None] * v for index in range(len(tokens))]).mean(0)
        coarse = (scale * unit @ (sentence / sentence.norm()) + bias)[:, None]
        features = torch.cat([(v + local) / 2, torch.sigmoid(coarse) * v, v], dim=-1)

        side = siglip.grid_size
        grid = self.prompter_down_channel(features.T.reshape(1, -1, side, side))
        grid = grid + _grid_encoding(backbone.shared_image_embedding, side)
        prompts = self.prompter_down_spatial(grid).flatten(2).transpose(1, 2)
        mask_size = (4 * embedding.shape[-1],) * 2
        coarse_map = F.interpolate(coarse.T.reshape(1, 1, side, side), mask_size, mode="bilinear", align_corners=False)
        masks = self.sam_mask_decoder.model(
            image_embeddings=embedding,
            image_positional_embeddings=_grid_encoding(backbone.shared_image_embedding, embedding.shape[-1]),
            sparse_prompt_embeddings=prompts[None],
            dense_prompt_embeddings=self.sam_prompt_encoder.model.mask_embed(coarse_map),
            multimask_output=False,
        )[0]
        return masks.reshape(mask_size)


def _inner(module: nn.Module) -> Any:
    return module.base_model.model if hasattr(module, "base_model") else module


def _grid_encoding(embedding: nn.Module, side: int) -> Tensor:
    """SAM's positional encoding at the centres of a grid's cells, (1, D, side, side)."""
    centres = (torch.arange(side) + 0.5) / side
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return embedding(torch.stack([x, y], dim=-1)).permute(2, 0, 1)[None]
