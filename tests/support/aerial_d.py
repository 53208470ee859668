"""The public model `luisml77/rsrefseg`, rebuilt from transformers and peft by its description, without our code."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import SamModel, SiglipModel

SIDE = 480  # of the square that the training code makes, px
_MEAN, _STD = (torch.tensor(values).view(1, 3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
_ATTENTION = ["q_proj", "k_proj", "v_proj", "out_proj"]
_SAM_LAYERS = ["qkv", "proj", "lin1", "lin2", "neck.conv1", "neck.conv2"]


class Unit(nn.Module):
    """Convolution with bias, batch norm and GELU under the names of that code."""

    def __init__(self, channels: tuple[int, int], kernel: int, stride: int = 1, normed: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(*channels, kernel, stride, kernel // 2)
        self.norm = nn.BatchNorm2d(channels[1]) if normed else None

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) if self.norm is None else F.gelu(self.norm(self.conv(x)))


class AerialD(nn.Module):
    """The model on a SAM and a SigLIP, which it wraps in place; trained weights are random."""

    def __init__(self, sam: SamModel, siglip: SiglipModel, rank: int = 4, alpha: int = 16) -> None:
        super().__init__()
        self.image_size, self.sam_size = siglip.config.vision_config.image_size, sam.config.vision_config.image_size
        width, channels = siglip.config.text_config.hidden_size, sam.config.vision_config.output_channels

        def adapted(tower: nn.Module, layers: list[str]) -> Any:
            return get_peft_model(tower, LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.1, target_modules=layers))

        self.backbone = adapted(sam.vision_encoder, _SAM_LAYERS)
        self.clip_vision_encoder = adapted(siglip.vision_model, _ATTENTION)
        self.clip_text_encoder = adapted(siglip.text_model, [*_ATTENTION, "fc1", "fc2", "head"])
        self.logit_scale, self.logit_bias = siglip.logit_scale, siglip.logit_bias
        self.sam_prompt_encoder, self.sam_mask_decoder = sam.prompt_encoder, sam.mask_decoder
        self.shared_image_embedding = sam.shared_image_embedding
        self.prompter_down_channel = Unit((3 * width, channels), 1)
        self.prompter_down_spatial = nn.Sequential(
            Unit((channels, channels), 3, 2),
            Unit((channels, channels), 3, 2),
            Unit((channels, channels), 1, normed=False),
        )
        generator = torch.Generator().manual_seed(7)
        for name, tensor in self.trained().items():
            if "prompter" in name or "lora_" in name:
                _fill(name, tensor, generator)
        self.eval()

    def trained(self) -> dict[str, Tensor]:
        """Return what its training code saves: adapters, prompter with statistics, temperature, shared encoding."""
        marks = ("lora_", "prompter_", "logit_", "shared_image_embedding.")
        return {
            name: tensor
            for name, tensor in self.state_dict().items()
            if any(mark in name for mark in marks) and not name.startswith("sam_")
        }

    def save(self, path: Path) -> Path:
        """Write a checkpoint as its training code does, with the state of an optimizer beside the weights."""
        optimizer = torch.optim.AdamW(self.prompter_down_channel.parameters())
        sum(parameter.sum() for parameter in self.prompter_down_channel.parameters()).backward()
        with torch.no_grad():
            keep = {name: tensor.clone() for name, tensor in self.state_dict().items() if "down_channel" in name}
            optimizer.step()
            self.load_state_dict(keep, strict=False)
        document = {"epoch": 3, "model_state_dict": self.trained(), "optimizer_state_dict": optimizer.state_dict()}
        torch.save(document | {"loss": 0.25}, path)
        return path

    @torch.no_grad()
    def forward(self, image: np.ndarray, input_ids: Tensor) -> Tensor:
        """(H, W, 3) uint8 and (L,) ids with their end token -> mask logits (4g, 4g)."""
        square = np.asarray(Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR)).copy()
        normalised = (torch.from_numpy(square).permute(2, 0, 1)[None] / 255.0 - _MEAN) / _STD

        def stretched(pixels: Tensor, size: int) -> Tensor:
            return F.interpolate(pixels, (size, size), mode="bilinear", align_corners=False)

        embedding = self.backbone(stretched(normalised * _STD + _MEAN, self.sam_size).clamp(0, 1)).last_hidden_state
        v = self.clip_vision_encoder(stretched(normalised, self.image_size)).last_hidden_state[0]
        text = self.clip_text_encoder(input_ids=input_ids[None])
        tokens, sentence = text.last_hidden_state[0], text.pooler_output[0]
        scale, bias = self.logit_scale.exp(), self.logit_bias
        unit = v / v.norm(dim=-1, keepdim=True)
        activation = torch.sigmoid(scale * unit @ (tokens / tokens.norm(dim=-1, keepdim=True)).T + bias)
        coarse = (scale * unit @ (sentence / sentence.norm()) + bias)[:, None]
        local = (v + activation.mean(dim=1, keepdim=True) * v) / 2
        features = torch.cat([local, torch.sigmoid(coarse) * v, v], dim=-1)
        side, grid_size = int(len(v) ** 0.5), embedding.shape[-1]
        grid = self.prompter_down_channel(features.T.reshape(1, -1, side, side)) + self._encoding(side)
        prompts = self.prompter_down_spatial(grid).flatten(2).transpose(1, 2)
        coarse_map = stretched(coarse.T.reshape(1, 1, side, side), 4 * grid_size)
        _, dense = self.sam_prompt_encoder(
            input_points=None, input_labels=None, input_boxes=None, input_masks=coarse_map
        )
        masks = self.sam_mask_decoder(
            image_embeddings=embedding,
            image_positional_embeddings=self._encoding(grid_size),
            sparse_prompt_embeddings=prompts[None],
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )[0]
        return masks.reshape(4 * grid_size, 4 * grid_size)

    def _encoding(self, side: int) -> Tensor:
        centres = (torch.arange(side) + 0.5) / side
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        return self.shared_image_embedding(torch.stack([x, y], dim=-1)).permute(2, 0, 1)[None]


def _fill(name: str, tensor: Tensor, generator: torch.Generator) -> None:
    with torch.no_grad():
        if not tensor.is_floating_point():
            tensor.fill_(7)
            return
        fan_in = tensor[0].numel() if tensor.ndim > 1 else 25
        tensor.copy_(torch.randn(tensor.shape, generator=generator) * fan_in**-0.5 * (0.3 if "lora_" in name else 1.0))
        if name.endswith("running_var"):
            tensor.abs_().add_(0.5)
        elif name.endswith("norm.weight"):
            tensor.add_(1.0)
