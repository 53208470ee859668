"""NVIDIA's compiler makes one kernel of every attention in FP16 graphs. Needs no GPU."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.tensorrt.attention import fused_nodes
from rsrefseg.engines.tensorrt.check import check_compilation
from rsrefseg.export.export import export_run
from rsrefseg.export.graph import OPSET
from rsrefseg.export.precision.half_blocks import sum_in_float32
from rsrefseg.export.settings import ExportSettings
from rsrefseg.inference.attention import AttentionForm, RelativePositionAttention
from rsrefseg.model.config import model_config
from tests.support.fusion import attentions_and_fused, compile_graph, types_of_sums
from tests.support.upstream import sam_attention


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Preset tiny as ``rsrefseg export --fp16`` writes it."""
    folder = tmp_path_factory.mktemp("tiny")
    export_run(folder / "run", folder / "bundle", ExportSettings(plan={}), preset="tiny")
    return Bundle.open(folder / "bundle")


def test_every_attention_of_every_stage_is_fused(tiny: Bundle) -> None:
    report = check_compilation(tiny, tuple(Stage), ("sm89",))
    expected = {Stage.SIGLIP_VISION: 4, Stage.SIGLIP_TEXT: 2, Stage.SAM_ENCODER: 6, Stage.SAM_DECODER: 7}
    assert report.failure is None
    for found in report.stages:
        assert (found.attentions, found.half, found.fused) == (expected.get(found.stage, 0),) * 3


class Block(nn.Module):
    """Attention with the cast to and from half precision and the residual sum around it."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        return x + self.attention(x.half()).float()


def exported(block: nn.Module, shape: tuple[int, ...], folder: Path) -> Path:
    """Export a block without dynamic sizes."""
    path = folder / "block.onnx"
    torch.onnx.export(block, (torch.zeros(shape),), path, dynamo=True, opset_version=OPSET, verbose=False)
    return path


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("form", [AttentionForm.ADDITIVE, AttentionForm.PADDED])
def test_sums_in_fp32_leave_attention_fused_and_factors_in_half(
    form: AttentionForm, wide: bool, tmp_path: Path
) -> None:
    """As the compiled engine reports them; the weights in it do not grow."""
    attention = RelativePositionAttention(sam_attention(14, 128), form, 28, 14).half()
    if wide:
        sum_in_float32(attention)
    nodes, engine = compile_graph(exported(Block(attention).eval(), (1, 28**2, 128), tmp_path))
    assert nodes == fused_nodes(engine) & nodes
    products, attentions = types_of_sums(engine)
    assert attentions == {b"fp32" if wide else b"fp16"}
    assert (b"2" in products) is wide


@pytest.mark.parametrize("kind", ["windowed", "global"])
@pytest.mark.parametrize("form", AttentionForm)
def test_the_forms_that_are_fused_at_full_size(form: AttentionForm, kind: str, tmp_path: Path) -> None:
    """With two heads of preset b. Preset l has more heads of the same size."""
    full = model_config("b").sam
    window, channels = full.window_size if kind == "windowed" else 0, 2 * full.embed_dim // full.num_heads
    original = sam_attention(window or full.grid_size, channels)
    block = Block(RelativePositionAttention(original, form, full.grid_size, window).half()).eval()
    attentions, fused = attentions_and_fused(exported(block, (1, full.grid_size**2, channels), tmp_path))
    assert len(attentions) == 1
    assert fused == (attentions if form in (AttentionForm.ADDITIVE, AttentionForm.PADDED) else set())
