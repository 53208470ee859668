"""NVIDIA's compiler makes one kernel of every kind of attention in Hiera-large, in FP16. Needs no GPU."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rsrefseg.engines.tensorrt.attention import fused_nodes
from rsrefseg.export.graph import OPSET
from rsrefseg.inference.rsrefseg2.sam2 import WindowAttention
from rsrefseg.model.config import model_config
from rsrefseg.model.rsrefseg2.sam2 import Sam2Encoder
from tests.support.fusion import compile_graph

# By block: side of the grid that it gets. The first block of a stage pools its queries; 23 is global.
BLOCKS = {0: 256, 2: 256, 3: 128, 8: 128, 9: 64, 23: 64, 44: 64, 45: 32}


class Block(nn.Module):
    """Attention with the cast to and from half precision around it."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        return self.attention(x.half()).float()


@pytest.mark.parametrize("capability", ["SM86", "SM89", "SM120"])
@pytest.mark.parametrize("block", BLOCKS)
def test_every_kind_of_attention_is_fused_at_full_size(block: int, capability: str, tmp_path: Path) -> None:
    config = model_config("rsrefseg2")
    assert config.rsrefseg2 is not None
    with torch.device("meta"):
        original = Sam2Encoder(config.sam, config.rsrefseg2, config.preprocessing).hiera.blocks[block]
    original = original.to_empty(device="cpu").requires_grad_(False)
    for parameter in original.parameters():
        parameter.normal_(std=0.02)
    pooled = original.query_stride is not None
    module = Block(WindowAttention(original.attn, original.window_size, pooled).half()).eval()
    path, shape = tmp_path / "block.onnx", (1, BLOCKS[block], BLOCKS[block], original.dim)
    torch.onnx.export(module, (torch.zeros(shape),), path, dynamo=True, opset_version=OPSET, verbose=False)
    nodes, engine = compile_graph(path, capability)
    assert len(nodes) == 1
    assert nodes == fused_nodes(engine) & nodes
