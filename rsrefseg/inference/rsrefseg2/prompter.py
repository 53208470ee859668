"""CascadedPrompter with folded projections and batch norm."""

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from ...model.rsrefseg2.prompter import CascadedPrompter, PrompterAttention
from ..projections import FoldedCrossAttention


def fold_prompter(prompter: CascadedPrompter, fused: bool = False) -> None:
    """Fold scales and biases into projections and the batch norm into its convolution, in place.

    Args:
        prompter: in eval mode.
        fused: write attention as one operator.
    """
    prompter.requires_grad_(False)  # the FLOP counter cannot track views of trained parameters
    for name, module in list(prompter.named_modules()):
        if isinstance(module, PrompterAttention):
            prompter.set_submodule(name, FoldedCrossAttention(module, fused))
    convolution, norm = prompter.dense_prompt_conv[0], prompter.dense_prompt_conv[1]
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    dtype = convolution.weight.dtype
    prompter.dense_prompt_conv[0] = fuse_conv_bn_eval(convolution.double(), norm.double()).to(dtype)
    prompter.dense_prompt_conv[1] = nn.Identity()
