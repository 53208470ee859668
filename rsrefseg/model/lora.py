"""LoRA adapters on the frozen towers (paper, section II-B), added and merged with peft."""

from collections import Counter
from dataclasses import dataclass

from peft import LoraConfig, LoraModel
from torch import nn

from rsrefseg.engines.errors import BadInputError

from .config import LoraSettings
from .model import RSRefSeg

# The published module sets: SigLIP attention (and the text head), SAM's attention, MLPs and both neck convolutions; in
# RSRefSeg 2 Hiera's attention and the four convolutions of its neck.
TARGET_MODULES = (
    r"siglip_(vision|text)\.encoder\.layers\.\d+\.self_attn\.(q_proj|k_proj|v_proj|out_proj)"
    r"|siglip_text\.head"
    r"|sam_encoder\.image_encoder\.blocks\.\d+\.(attn\.(qkv|proj)|mlp\.(lin1|lin2))"
    r"|sam_encoder\.image_encoder\.neck\.(0|2)"
    r"|sam_encoder\.hiera\.blocks\.\d+\.attn\.(qkv|proj)"
    r"|sam_encoder\.convs\.\d+"
)
# Stages whose own weights are trained: the prompter, SAM's prompt encoder and mask decoder.
_TRAINED_STAGES = ("attn_prompter.", "sam_decoder.")
_FROZEN = ("attn_prompter.logit_scale", "attn_prompter.logit_bias")
# RSRefSeg 2 trains these as well, and SigLIP's scale and bias.
_TRAINED_RSREFSEG2 = (*_TRAINED_STAGES, "sam_encoder.conv_s0.", "sam_encoder.conv_s1.", "sam_encoder.no_mem_embed")
# Parts of SAM that a single-mask prediction does not use, so they receive no gradient.
_UNUSED = (
    "sam_decoder.prompt_encoder.point_embeddings.",
    "sam_decoder.prompt_encoder.not_a_point_embed.",
    "sam_decoder.mask_decoder.iou_prediction_head.",
    "sam_decoder.mask_decoder.output_hypernetworks_mlps.1.",
    "sam_decoder.mask_decoder.output_hypernetworks_mlps.2.",
    "sam_decoder.mask_decoder.output_hypernetworks_mlps.3.",
)
_NO_MASK = "sam_decoder.prompt_encoder.no_mask_embed."
_MASK_INPUT = "sam_decoder.prompt_encoder.mask_downscaling."
_ADAPTER_MARK = ".lora_"


@dataclass(frozen=True, slots=True)
class ParameterCounts:
    """Number of trained parameters by part of the model, and number of all parameters.

    ``towers`` counts the weights of SigLIP and of SAM's image encoder, which only training from scratch changes.
    """

    lora: int
    attn_prompter: int
    sam_decoder: int
    towers: int
    total: int

    @property
    def trained(self) -> int:
        """Number of parameters that training changes."""
        return self.lora + self.attn_prompter + self.sam_decoder + self.towers

    def render(self) -> str:
        """Return the counts as one line of text."""
        parts = {"LoRA": self.lora, "towers": self.towers, "AttnPrompter": self.attn_prompter}
        parts["SAM's prompt encoder and mask decoder"] = self.sam_decoder
        counts = ", ".join(f"{name} {count:,}" for name, count in parts.items() if count)
        return f"trains {self.trained:,} of {self.total:,} parameters ({self.trained / self.total:.1%}): {counts}"


def count_parameters(model: nn.Module) -> ParameterCounts:
    """Count the parameters of a model; those with ``requires_grad`` count as trained."""
    trained = Counter[str]()
    for name, parameter in trainable_parameters(model).items():
        stage = name.partition(".")[0]
        stage = stage if f"{stage}." in _TRAINED_STAGES else "towers"
        trained["lora" if _ADAPTER_MARK in name else stage] += parameter.numel()
    total = sum(parameter.numel() for parameter in model.parameters())
    return ParameterCounts(trained["lora"], trained["attn_prompter"], trained["sam_decoder"], trained["towers"], total)


def add_lora(model: RSRefSeg, settings: LoraSettings) -> LoraModel:
    """Add adapters to ``model`` in place and set ``requires_grad`` of its parameters.

    Returns:
        peft's wrapper of the same modules, for ``fold_lora``.
    """
    config = LoraConfig(
        r=settings.rank, lora_alpha=settings.alpha, lora_dropout=settings.dropout, target_modules=TARGET_MODULES
    )
    tuner = LoraModel(model, {"default": config}, "default")
    second = model.config.rsrefseg2 is not None
    trained, frozen = (_TRAINED_RSREFSEG2, ()) if second else (_TRAINED_STAGES, _FROZEN)
    for name, parameter in model.named_parameters():
        fully = name.startswith(trained) and name not in frozen
        parameter.requires_grad_((fully or _ADAPTER_MARK in name) and not _is_unused(model, name))
    return tuner


def train_everything(model: RSRefSeg) -> None:
    """Set ``requires_grad`` for all weights that a prediction depends on."""
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not _is_unused(model, name))


def fold_lora(tuner: LoraModel) -> RSRefSeg:
    """Merge each adapter into its linear layer or convolution and remove the adapters.

    Returns:
        The plain model, with the parameter names it had before ``add_lora``.

    Raises:
        BadInputError: an adapter holds values that are not finite.
    """
    try:
        model = tuner.merge_and_unload(progressbar=False, safe_merge=True)
    except ValueError as error:
        raise BadInputError(f"the LoRA weights cannot be merged: {error}") from error
    assert isinstance(model, RSRefSeg)
    return model


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters that training changes, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def _is_unused(model: RSRefSeg, name: str) -> bool:
    idle = _NO_MASK if model.config.dense_prompt else _MASK_INPUT
    return name.startswith((*_UNUSED, idle))
