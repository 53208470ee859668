"""A public RSRefSeg 2, rebuilt from transformers and peft by its description, without our code."""

import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from msgspec.structs import replace
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Sam2Config, Sam2Model, SiglipTextModel, SiglipVisionModel

from rsrefseg.model.config import ModelConfig, RSRefSeg2Config, SamConfig, SiglipConfig, TransformerConfig, model_config
from rsrefseg.model.tokenizer import build_word_tokenizer
from rsrefseg.runs.imported_run import rendered_scenes
from tests.support.upstream import State, randomize, siglip_config
from tests.support.words import write_word_tokenizer


def small_config2(**overrides: Any) -> ModelConfig:
    """Return a small RSRefSeg 2 with every kind of block: windowed, pooling and global."""
    tower = TransformerConfig(hidden_size=24, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    siglip = SiglipConfig(32, 4, vision=tower, text=tower, vocab_size=200)
    sam = SamConfig(
        64, 8, depth=6, num_heads=1, global_attn_indexes=(3,),
        prompt_channels=32, decoder_mlp_dim=32, decoder_num_heads=2,
    )  # fmt: skip
    parts = RSRefSeg2Config((1, 1, 3, 1), (4, 2, 4, 2), background=3, prompter_width=16, prompter_heads=2)
    sizes = {"preset": "small2", "siglip": siglip, "sam": sam, "rsrefseg2": parts}
    return replace(model_config("rsrefseg2-tiny"), **(sizes | overrides))


def sam2_model(config: ModelConfig) -> Sam2Model:
    """Return the Hugging Face SAM 2 with the sizes of a configuration."""
    sam, hiera = config.sam, config.rsrefseg2
    widths = [sam.embed_dim * factor for factor in (1, 2, 4, 8)]
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": widths[0],
        "num_attention_heads": sam.num_heads,
        "image_size": [sam.image_size, sam.image_size],
        "window_positional_embedding_background_size": [hiera.background] * 2,
        "blocks_per_stage": list(hiera.blocks),
        "embed_dim_per_stage": widths,
        "num_attention_heads_per_stage": [sam.num_heads * factor for factor in (1, 2, 4, 8)],
        "window_size_per_stage": list(hiera.windows),
        "global_attention_blocks": list(sam.global_attn_indexes),
    }
    vision = {
        "backbone_config": backbone,
        "backbone_channel_list": widths[::-1],
        "backbone_feature_sizes": [[sam.image_size // step] * 2 for step in (4, 8, 16)],
        "fpn_hidden_size": sam.prompt_channels,
    }
    prompts = {"hidden_size": sam.prompt_channels, "image_size": sam.image_size, "patch_size": 16}
    decoder = {
        "hidden_size": sam.prompt_channels,
        "mlp_dim": sam.decoder_mlp_dim,
        "num_attention_heads": sam.decoder_num_heads,
        "iou_head_hidden_dim": sam.prompt_channels,
        "dynamic_multimask_via_stability": True,
    }
    return Sam2Model(Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder))


class Attn(nn.Module):
    """Attention of the prompter."""

    def __init__(self, config: RSRefSeg2Config, query: int, key: int) -> None:
        super().__init__()
        width, self.heads = config.prompter_width, config.prompter_heads
        self.q_proj, self.k_proj = nn.Linear(query, width), nn.Linear(key, width)
        self.v_proj, self.out_proj = nn.Linear(key, width), nn.Linear(width, query)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        def split(x: Tensor) -> Tensor:
            return x.view(x.shape[0], x.shape[1], self.heads, -1).transpose(1, 2)

        found = F.scaled_dot_product_attention(split(self.q_proj(q)), split(self.k_proj(k)), split(self.v_proj(v)))
        return self.out_proj(found.transpose(1, 2).flatten(2))


def mlp(channels: int, width: int) -> nn.Module:
    return nn.ModuleDict({"layers": nn.ModuleList([nn.Linear(channels, width), nn.Linear(width, channels)])})


def run_mlp(module: Any, x: Tensor) -> Tensor:
    return module.layers[1](F.gelu(module.layers[0](x)))


class Prompter(nn.Module):
    """CascadedPrompter, step by step as described."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        second, c, d = config.rsrefseg2, config.siglip.vision.hidden_size, config.sam.prompt_channels
        self.side, self.mask_side = config.siglip.grid_size, config.sam.mask_size

        def layer(attention: dict[str, tuple[int, int]], mlps: dict[str, int], norms: dict[str, int]) -> nn.ModuleDict:
            parts: dict[str, nn.Module] = {name: Attn(second, *sizes) for name, sizes in attention.items()}
            parts |= {name: mlp(size, second.prompter_width) for name, size in mlps.items()}
            return nn.ModuleDict(parts | {name: nn.LayerNorm(size) for name, size in norms.items()})

        names = ["self_attn_query_query1", "self_attn_query_query2", "cross_attn_query_text_query1_text"]
        names += ["cross_attn_query_text_query2_text", "cross_attn_query_query_query1_query2"]
        names += ["cross_attn_query_query_query2_query1"]
        text_mlps = dict.fromkeys(("mlp_query1_2", "mlp_query1_3", "mlp_query2_2", "mlp_query2_3"), c)
        text_norms = {f"norm_query{q}_{n}": c for q in (1, 2) for n in range(1, 6)}
        image_norms = {"norm_text_1": c, "norm_img_1": c, "norm_img_2": c}
        prompt_attention = {"self_attn_text_1": (c, c), "cross_attn_img_text_1": (c, c), "self_attn_prompt_1": (d, d)}
        prompt_attention |= {"cross_attn_prompt_text_1": (d, c), "cross_attn_prompt_img_1": (d, c)}
        prompt_norms = image_norms | {f"norm_prompt_{n}": d for n in range(1, 6)}
        first = {"self_attn_text_text_1": (c, c), "cross_attn_img_text_1": (c, c)}
        self.two_queries_text_attn_layers = nn.ModuleList(
            layer(dict.fromkeys(names, (c, c)), text_mlps, text_norms) for _ in range(2)
        )
        self.queries1_to_img_attn_layers = nn.ModuleList(layer(first, {"mlp_img_1": c}, image_norms) for _ in range(2))
        self.prompt_queries2_img_attn_layers = nn.ModuleList(
            layer(prompt_attention, {"mlp_img_1": c, "mlp_prompt_2": d, "mlp_prompt_3": d}, prompt_norms)
            for _ in range(2)
        )
        self.text_query_pe_embedding1, self.text_query_pe_embedding2 = (nn.Parameter(torch.zeros(3, c)) for _ in "12")
        self.img_pe = nn.Parameter(torch.zeros(1, c, self.side, self.side))
        self.prompt_pe_embedding, self.prompt_embedding = (nn.Parameter(torch.zeros(9, d)) for _ in "12")
        self.sparse_prompt_mlp = mlp(d, second.prompter_width)
        convolution = (nn.Conv2d(c, c // 2, 3, padding=1), nn.BatchNorm2d(c // 2), nn.GELU())
        self.dense_prompt_conv = nn.Sequential(*convolution, nn.Conv2d(c // 2, c, 3, padding=1))

    def forward(self, v: Tensor, t: Tensor, pooled: Tensor, scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        """One image and one phrase: V (1, T, C), words (1, L, C), pooled (1, C)."""
        e1, e2 = self.text_query_pe_embedding1, self.text_query_pe_embedding2
        q1 = F.adaptive_avg_pool1d(t.transpose(1, 2), 3).transpose(1, 2)
        q2 = q1
        for m in self.two_queries_text_attn_layers:
            q1 = m.norm_query1_1(q1 + m.self_attn_query_query1(q1 + e1, q1 + e1, q1))
            q2 = m.norm_query2_1(q2 + m.self_attn_query_query2(q2 + e2, q2 + e2, q2))
            q1 = m.norm_query1_2(q1 + m.cross_attn_query_text_query1_text(q1 + e1, t, t))
            q1 = m.norm_query1_3(q1 + run_mlp(m.mlp_query1_2, q1))
            q2 = m.norm_query2_2(q2 + m.cross_attn_query_text_query2_text(q2 + e2, t, t))
            q2 = m.norm_query2_3(q2 + run_mlp(m.mlp_query2_2, q2))
            q1 = m.norm_query1_4(q1 + m.cross_attn_query_query_query1_query2(q1 + e1, q2 + e2, q2))
            q1 = m.norm_query1_5(q1 + run_mlp(m.mlp_query1_3, q1))
            q2 = m.norm_query2_4(q2 + m.cross_attn_query_query_query2_query1(q2 + e2, q1 + e1, q1))
            q2 = m.norm_query2_5(q2 + run_mlp(m.mlp_query2_3, q2))
        place, x = self.img_pe.flatten(2).transpose(1, 2), v
        for m in self.queries1_to_img_attn_layers:
            q1 = m.norm_text_1(q1 + m.self_attn_text_text_1(q1 + e1, q1 + e1, q1))
            x = m.norm_img_1(x + m.cross_attn_img_text_1(x + place, q1 + e1, q1))
            x = m.norm_img_2(x + run_mlp(m.mlp_img_1, x))
        p, pe = self.prompt_embedding[None], self.prompt_pe_embedding
        for m in self.prompt_queries2_img_attn_layers:
            q2 = m.norm_text_1(q2 + m.self_attn_text_1(q2 + e2, q2 + e2, q2))
            x = m.norm_img_1(x + m.cross_attn_img_text_1(x + place, q2 + e2, q2))
            x = m.norm_img_2(x + run_mlp(m.mlp_img_1, x))
            p = m.norm_prompt_1(p + m.self_attn_prompt_1(p + pe, p + pe, p))
            p = m.norm_prompt_2(p + m.cross_attn_prompt_text_1(p + pe, q2 + e2, q2))
            p = m.norm_prompt_3(p + run_mlp(m.mlp_prompt_2, p))
            p = m.norm_prompt_4(p + m.cross_attn_prompt_img_1(p + pe, x + place, x))
            p = m.norm_prompt_5(p + run_mlp(m.mlp_prompt_3, p))
        f = self.dense_prompt_conv(x.transpose(1, 2).reshape(1, -1, self.side, self.side))
        f = F.interpolate(f, (self.mask_side, self.mask_side), mode="bilinear", align_corners=True)
        f = f / f.norm(dim=1, keepdim=True)
        dense = scale.exp() * (f * (pooled / pooled.norm())[:, :, None, None]).sum(1, keepdim=True) + bias
        return run_mlp(self.sparse_prompt_mlp, p), dense


# From names of the Hugging Face port to Meta's.
META = (
    (r"^vision_encoder\.(base_model\.model\.)?backbone\.", r"image_encoder.\1trunk."),
    (r"^vision_encoder\.", "image_encoder."),
    (r"(neck\.convs\.\d)\.", r"\1.conv."),
    (r"patch_embed\.projection", "patch_embed.proj"),
    (r"^no_memory_embedding", "no_mem_embed"),
    (r"^prompt_encoder\.shared_embedding\.\w+", "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"),
    (r"^prompt_encoder\.mask_embed\.conv1", "sam_prompt_encoder.mask_downscaling.0"),
    (r"^prompt_encoder\.mask_embed\.layer_norm1", "sam_prompt_encoder.mask_downscaling.1"),
    (r"^prompt_encoder\.mask_embed\.conv2", "sam_prompt_encoder.mask_downscaling.3"),
    (r"^prompt_encoder\.mask_embed\.layer_norm2", "sam_prompt_encoder.mask_downscaling.4"),
    (r"^prompt_encoder\.mask_embed\.conv3", "sam_prompt_encoder.mask_downscaling.6"),
    (r"^prompt_encoder\.", "sam_prompt_encoder."),
    (r"^mask_decoder\.upscale_conv1", "mask_decoder.output_upscaling.0"),
    (r"^mask_decoder\.upscale_layer_norm", "mask_decoder.output_upscaling.1"),
    (r"^mask_decoder\.upscale_conv2", "mask_decoder.output_upscaling.3"),
    (r"((?:hypernetworks_mlps\.\d|iou_prediction_head|pred_obj_score_head)\.)layers\.0", r"\1layers.1"),
    (r"((?:hypernetworks_mlps\.\d|iou_prediction_head|pred_obj_score_head)\.)proj_in", r"\1layers.0"),
    (r"((?:hypernetworks_mlps\.\d|iou_prediction_head|pred_obj_score_head)\.)proj_out", r"\1layers.2"),
    (r"mlp\.proj_in", "mlp.layers.0"),
    (r"mlp\.proj_out", "mlp.layers.1"),
    (r"o_proj", "out_proj"),
    (r"layer_norm_final_attn", "norm_final_attn"),
    (r"layer_norm(\d)", r"norm\1"),
    (r"^mask_decoder\.", "sam_mask_decoder."),
)  # fmt: skip


def meta_state(state: State) -> State:
    """Return the tensors of the Hugging Face SAM 2, with peft's wrapper in it, by Meta's names."""
    renamed: State = {}
    for name, tensor in state.items():
        if name.startswith("shared_image_embedding."):
            continue  # equal to the prompt encoder's
        if name == "prompt_encoder.point_embed.weight":
            renamed |= {f"sam_prompt_encoder.point_embeddings.{i}.weight": tensor[i : i + 1] for i in range(4)}
            continue
        for pattern, replacement in META:
            name = re.sub(pattern, replacement, name)
        renamed[name] = tensor
    return renamed


class PublicRSRefSeg2(nn.Module):
    """The published model of one image and one phrase without padding, in eval mode.

    The weights are random, and those of the first mask large, so that it is stable for some inputs. ``fell_back`` is
    whether the last result was one of the other masks.
    """

    fell_back = False

    def __init__(self, config: ModelConfig, rank: int = 16, seed: int = 3) -> None:
        super().__init__()
        self.config = config
        self.sam = sam2_model(config)
        siglip = siglip_config(config)
        text = nn.ModuleDict({"model": SiglipTextModel(siglip.text_config)})
        text.logit_scale, text.logit_bias = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
        vision = nn.ModuleDict({"model": SiglipVisionModel(siglip.vision_config)})

        def lora(targets: str) -> LoraConfig:
            return LoraConfig(r=rank, lora_alpha=rank, target_modules=targets)

        attention = r".*encoder\.layers\.\d+\.self_attn\.(q|k|v|out)_proj"
        self.sam.vision_encoder = get_peft_model(
            self.sam.vision_encoder, lora(r".*blocks\.\d+\.attn\.(qkv|proj)|neck\.convs\.\d")
        )
        unused_head = r"|model\.head\.attention\.out_proj|model\.head\.mlp\.fc[12]"
        self.clip_vision_encoder = get_peft_model(vision, lora(attention + unused_head))
        self.clip_text_encoder = get_peft_model(text, lora(attention + r"|model\.head"))
        self.prompter = Prompter(config)
        self.decode_head = nn.ParameterDict(
            {f"logit_{kind}{n}": nn.Parameter(torch.zeros(())) for kind in ("scale", "bias") for n in (1, 2)}
        )
        if self.prompter.img_pe.device.type == "meta":
            return
        randomize(self, seed)
        encoding = self.sam.prompt_encoder.shared_embedding.positional_embedding
        self.sam.shared_image_embedding.positional_embedding.data.copy_(encoding)
        text.logit_scale.data.fill_(1.5)
        text.logit_bias.data.fill_(-1.0)
        for parameter in self.sam.mask_decoder.output_hypernetworks_mlps[0].proj_out.parameters():
            parameter.data.mul_(500)

    def published_state(self) -> State:
        """Return the tensors by the published names."""
        state = self.state_dict()
        sam = {name.removeprefix("sam."): tensor for name, tensor in state.items() if name.startswith("sam.")}
        others = {name: tensor for name, tensor in state.items() if not name.startswith("sam.")}
        return {f"backbone.model.{name}": tensor for name, tensor in meta_state(sam).items()} | others

    @torch.no_grad()
    def forward(self, image: np.ndarray, input_ids: Tensor) -> Tensor:
        """(H, W, 3) uint8 RGB and (L,) ids with their end token -> mask logits (4g, 4g)."""
        side = self.config.sam.image_size
        height, width = padded_size(image, side)
        resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR)
        x = torch.from_numpy(resized).permute(2, 0, 1)[None].float() / 255
        x = F.pad(x, (0, side - width, 0, side - height))
        mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
        std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
        s0, s1, embedding = self.sam.get_image_embeddings((x - mean) / std)
        pixels = F.avg_pool2d((x - 0.5) / 0.5, side // self.config.siglip.image_size)
        v = self.clip_vision_encoder.base_model.model.model(pixels).last_hidden_state
        text = self.clip_text_encoder.base_model.model
        words = text.model(input_ids[None])
        sparse, dense = self.prompter(
            v, words.last_hidden_state, words.pooler_output, text.logit_scale, text.logit_bias
        )
        inputs = {
            "image_embeddings": embedding,
            "image_positional_embeddings": self.sam.get_image_wide_positional_embeddings(),
            "sparse_prompt_embeddings": sparse[:, None],
            "dense_prompt_embeddings": self.sam.prompt_encoder.mask_embed(dense),
            "high_resolution_features": [s0, s1],
        }
        found = self.sam.mask_decoder(multimask_output=False, **inputs)[0][0, 0, 0]
        others = self.sam.mask_decoder(multimask_output=True, **inputs)[0][0, 0]
        self.fell_back = any(torch.equal(found, other) for other in others)
        return found

    def mask(self, image: np.ndarray, logits: Tensor) -> np.ndarray:
        """(4g, 4g) logits -> the mask of the image, (H, W) bool."""
        side = self.config.sam.image_size
        height, width = padded_size(image, side)
        square = F.interpolate(logits[None, None], (side, side), mode="bilinear", align_corners=False)
        full = F.interpolate(square[..., :height, :width], image.shape[:2], mode="bilinear", align_corners=False)
        return (full[0, 0] > 0).numpy()


def write_public2(folder: Path, model: PublicRSRefSeg2, padding: bool = False) -> Path:
    """Write a checkpoint and a SigLIP folder that has a tokenizer only, as ``public.pth`` and ``siglip``.

    With ``padding``, the tokenizer pads with token 0, as that of SigLIP 2 does.
    """
    torch.save({"state_dict": model.published_state()}, folder / "public.pth")
    phrases = [referral.phrase for scene in rendered_scenes() for referral in scene.referrals]
    write_word_tokenizer(folder / "siglip" / "tokenizer.json", phrases, model.config.siglip.vocab_size)
    if padding:
        settings = {"pad_token": build_word_tokenizer(phrases, 200).id_to_token(0)}
        (folder / "siglip" / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder / "public.pth"


def padded_size(image: np.ndarray, side: int) -> tuple[int, int]:
    """Return height and width in px after the resize of the long side."""
    scale = side / max(image.shape[:2])
    return int(image.shape[0] * scale + 0.5), int(image.shape[1] * scale + 0.5)
