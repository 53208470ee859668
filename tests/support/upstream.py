"""Small checkpoints in public layouts: SAM in both layouts, SigLIP, and a rebuilt public RSRefSeg."""

import json
from collections import OrderedDict
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from msgspec.structs import asdict, replace
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.modeling.image_encoder import Attention
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SamConfig, SamModel, SiglipConfig, SiglipModel, SiglipTextModel, SiglipVisionModel

from rsrefseg.model.config import ModelConfig
from tests.support.small import small_config
from tests.support.words import write_word_tokenizer

State = dict[str, Tensor]
PHRASES = ("the red box", "the white box on the left", "the blue box")


def brought_config(**overrides: Any) -> ModelConfig:
    """Return the small model with different grids: 7 x 7 patches for SigLIP, 4 x 4 for SAM."""
    config = small_config()
    return replace(config, siglip=replace(config.siglip, image_size=56), **overrides)


def randomize(module: nn.Module, seed: int = 0) -> Any:
    """Set distinct values for all weights of a module, in a range that keeps activations alive."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            fan_in = tensor[0].numel() if tensor.ndim > 1 else 25
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * fan_in**-0.5)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_var.abs_().add_(0.5)
            part.num_batches_tracked.fill_(7)
        elif "LayerNorm" in type(part).__name__:
            part.weight.data.add_(1.0)
    return module.eval()


def sam_attention(grid_size: int, channels: int = 24, heads: int = 2) -> Attention:
    """Return segment-anything's attention with random position embeddings, which it initialises to zero."""
    return randomize(Attention(channels, heads, use_rel_pos=True, input_size=(grid_size, grid_size)))


def segment_anything_sam(config: ModelConfig, seed: int = 1) -> Sam:
    """Return segment-anything's model with the sizes of a configuration."""
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


def port_sam(config: ModelConfig, seed: int = 1) -> SamModel:
    """Return the Hugging Face SAM with the sizes of a configuration and a shared encoding."""
    sam = config.sam
    vision = {
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
    }
    prompts = {"hidden_size": sam.prompt_channels, "image_size": sam.image_size, "patch_size": sam.patch_size}
    decoder = {
        "hidden_size": sam.prompt_channels,
        "mlp_dim": sam.decoder_mlp_dim,
        "num_attention_heads": sam.decoder_num_heads,
        "iou_head_hidden_dim": sam.prompt_channels,
    }
    parts = {"vision_config": vision, "prompt_encoder_config": prompts, "mask_decoder_config": decoder}
    model = randomize(SamModel(SamConfig(**parts)), seed)
    encoding = model.shared_image_embedding.positional_embedding
    model.prompt_encoder.shared_embedding.positional_embedding.data.copy_(encoding)
    return model


def siglip_config(config: ModelConfig) -> SiglipConfig:
    """Return the Hugging Face configuration of the same SigLIP."""
    siglip = config.siglip
    vision = asdict(siglip.vision) | {"image_size": siglip.image_size, "patch_size": siglip.patch_size}
    text = asdict(siglip.text) | {"vocab_size": siglip.vocab_size, "max_position_embeddings": siglip.text_length}
    return SiglipConfig(vision_config=vision, text_config=text)


def siglip_model(config: ModelConfig, seed: int = 2) -> SiglipModel:
    """Return a SigLIP with the sizes of a configuration."""
    model = randomize(SiglipModel(siglip_config(config)), seed)
    model.logit_scale.data.fill_(1.5)
    model.logit_bias.data.fill_(-1.0)
    return model


def write_siglip_folder(folder: Path, config: ModelConfig, seed: int = 2) -> Path:
    """Write a SigLIP folder as on the hub: configuration, weights, tokenizer."""
    folder.mkdir()
    save_file(siglip_model(config, seed).state_dict(), folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(siglip_config(config).to_dict()))
    write_word_tokenizer(folder / "tokenizer.json", PHRASES, config.siglip.vocab_size)
    return folder


def conv_unit(channels: tuple[int, int], kernel: int, stride: int = 1) -> nn.Sequential:
    """Convolution, batch norm and GELU under the public names."""
    conv = nn.Conv2d(*channels, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(OrderedDict(conv=conv, bn=nn.BatchNorm2d(channels[1]), act=nn.GELU()))


class PublicRSRefSeg(nn.Module):
    """The published model, rebuilt from transformers and peft by its description, without our code.

    It takes one image and one phrase without padding, which equals the published padding ("longest") of a single
    phrase.
    """

    def __init__(self, config: ModelConfig, rank: int = 4, alpha: int = 4, seed: int = 3) -> None:
        super().__init__()
        self.config = config
        sam = port_sam(config, seed)
        siglip = siglip_config(config)
        text = nn.ModuleDict({"model": SiglipTextModel(siglip.text_config)})
        text.logit_scale, text.logit_bias = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        channels, width = config.sam.prompt_channels, config.siglip.vision.hidden_size
        lora = partial(LoraConfig, r=rank, lora_alpha=alpha, lora_dropout=0.1)
        backbone = {"model": sam.vision_encoder, "shared_image_embedding": sam.shared_image_embedding}
        layers = ["qkv", "proj", "lin1", "lin2", "neck.conv1", "neck.conv2"]
        self.backbone = get_peft_model(nn.ModuleDict(backbone), lora(target_modules=layers))
        attention = ["q_proj", "k_proj", "v_proj", "out_proj"]
        vision = nn.ModuleDict({"model": SiglipVisionModel(siglip.vision_config)})
        self.clip_vision_encoder = get_peft_model(vision, lora(target_modules=attention))
        self.clip_text_encoder = get_peft_model(text, lora(target_modules=[*attention, "model.head"]))
        self.sam_prompt_encoder = nn.ModuleDict({"model": sam.prompt_encoder})
        self.sam_mask_decoder = nn.ModuleDict({"model": sam.mask_decoder})
        self.prompter_down_channel = conv_unit((3 * width, channels), 1)
        self.prompter_down_spatial = nn.Sequential(
            conv_unit((channels, channels), 3, 2),
            conv_unit((channels, channels), 3, 2),
            nn.Sequential(OrderedDict(conv=nn.Conv2d(channels, channels, 1))),
        )
        randomize(self, seed)
        encoding = sam.shared_image_embedding.positional_embedding
        self.sam_prompt_encoder.model.shared_embedding.positional_embedding.data.copy_(encoding)
        text.logit_scale.data.fill_(1.5)
        text.logit_bias.data.fill_(-1.0)

    def merged(self) -> "PublicRSRefSeg":
        """Return the model with adapters merged by peft, without wrappers."""
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


def without(*parts: str) -> Callable[[State], State]:
    """Return a state without tensors whose names contain one of ``parts``."""
    return lambda state: {name: tensor for name, tensor in state.items() if not any(part in name for part in parts)}


def with_one(name: str, tensor: Tensor) -> Callable[[State], State]:
    """Return a state with an added or replaced tensor."""
    return lambda state: state | {name: tensor}


def _inner(module: nn.Module) -> Any:
    return module.base_model.model if hasattr(module, "base_model") else module


def _grid_encoding(embedding: nn.Module, side: int) -> Tensor:
    """Return SAM's positional encoding at the centres of a grid's cells, (1, D, side, side)."""
    centres = (torch.arange(side) + 0.5) / side
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return embedding(torch.stack([x, y], dim=-1)).permute(2, 0, 1)[None]
