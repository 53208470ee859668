"""FLOPs, parameters and bytes of graphs are counted from the graphs, and agree with PyTorch's own counts."""

import copy
from pathlib import Path

import onnx
import pytest
import torch
from msgspec.structs import replace
from onnx import TensorProto, helper
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Dim, Stage, StageContract, TensorSpec, stage_contracts
from rsrefseg.engines.errors import CheckFailedError
from rsrefseg.export.checks import check_graph
from rsrefseg.export.costs import count_costs
from rsrefseg.export.graph import example_input, export_graph
from rsrefseg.export.settings import default_attention
from rsrefseg.inference.attention import AttentionChoice
from rsrefseg.inference.stages import fold_for_inference
from rsrefseg.model.config import model_config
from rsrefseg.model.model import RSRefSeg, build_model, build_stage, geometry
from rsrefseg.model.stages import model_contracts
from tests.support.small import small_config


def torch_flops(module: nn.Module, contract: StageContract) -> int:
    inputs = [example_input(spec)[:1] for spec in contract.inputs]  # one image, one phrase: the optimum
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(*inputs)
    return counter.get_total_flops()


def test_flops_agree_with_pytorchs_count(bundle: Bundle, fused_bundle: Bundle, model: RSRefSeg, stage: Stage) -> None:
    record = bundle.manifest.stages[stage]
    folded = fold_for_inference(copy.deepcopy(model.stage(stage)), default_attention(model.config.sam))
    assert record.flops == pytest.approx(torch_flops(folded, record.contract), rel=0.001)
    saved = 0
    if stage is Stage.SAM_ENCODER:
        # One block has windows of 3 over 4 x 4 tokens: 20 of 36 are padding, for which nothing is projected.
        saved = 20 * 2 * 4 * model.config.sam.embed_dim**2
    else:  # the same attention, as one operator
        assert fused_bundle.manifest.stages[stage].flops == record.flops
    published = torch_flops(model.stage(stage), record.contract)
    assert record.flops + saved == pytest.approx(published, rel=0.02)


# The published arithmetic, GFLOP for one image and one phrase.
@pytest.mark.parametrize(
    ("preset", "stage", "gflop", "share"),
    [
        ("b", Stage.SIGLIP_VISION, 666, 1.0),
        ("b", Stage.SIGLIP_TEXT, 53, 1.0),
        ("b", Stage.SAM_DECODER, 4.4, 1.0),
        ("b", Stage.SAM_ENCODER, 972, 0.968),
        ("l", Stage.SAM_ENCODER, 2986, 0.955),
    ],
)
def test_full_size_flops_are_the_published_ones(preset: str, stage: Stage, gflop: float, share: float) -> None:
    """Counted on modules without memory. Padding is not projected: of 70 x 70 tokens in windows of 14, 804."""
    config = model_config(preset)
    contract = stage_contracts(geometry(config))[stage]
    with torch.device("meta"):
        published = build_stage(stage, config).eval()
        folded = fold_for_inference(build_stage(stage, config).eval(), AttentionChoice())
        counts = [torch_flops(module, contract) / 1e9 for module in (published, folded)]
    assert counts[0] == pytest.approx(gflop, rel=0.02)
    assert counts[1] == pytest.approx(share * counts[0], rel=0.005)


def test_flops_are_counted_at_the_contracts_sizes(tmp_path: Path) -> None:
    """Nothing in the exporter knows how many phrases there may be."""
    model = build_model(small_config(), seed=2)
    contract = model_contracts(model)[Stage.SIGLIP_TEXT]
    few = Dim("phrases", 1, 2, 3)

    def resized(specs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, ...]:
        return tuple(replace(spec, shape=(few, *spec.shape[1:])) for spec in specs)

    changed = replace(contract, inputs=resized(contract.inputs), outputs=resized(contract.outputs))
    export_graph(model.siglip_text, changed, tmp_path / "siglip_text.onnx")
    graph = check_graph(tmp_path / "siglip_text.onnx", changed)
    assert count_costs(graph, changed).flops == 2 * count_costs(graph, contract).flops


@pytest.mark.parametrize(
    "extra",
    [
        [
            helper.make_node("NonZero", ["sentence_feature"], ["rows"]),
            helper.make_node("Cast", ["rows"], ["floats"], to=TensorProto.FLOAT),
            helper.make_node("MatMul", ["floats", "floats"], ["unknown"], name="odd"),
        ],
        [helper.make_node("Einsum", ["sentence_feature"] * 2, ["unknown"], name="odd", equation="pc,qc->pq")],
    ],
    ids=["unknown size", "unknown product"],
)
def test_flops_that_cannot_be_counted_are_refused(bundle: Bundle, extra: list[onnx.NodeProto]) -> None:
    """A count that leaves something out would be taken for the truth."""
    graph = onnx.load(bundle.graph_path(Stage.SIGLIP_TEXT), load_external_data=False)
    graph.graph.node.extend(extra)
    with pytest.raises(CheckFailedError, match="'odd'"):
        count_costs(graph, bundle.manifest.stages[Stage.SIGLIP_TEXT].contract)


def test_parameters_and_bytes_are_those_of_the_model_and_the_files(bundle: Bundle, model: RSRefSeg) -> None:
    """Weights that are equal are stored once, constants are stored as well: the count is near the model's own."""
    for stage, record in bundle.manifest.stages.items():
        stored = sum(file.size_bytes for file in (record.graph, *record.data))
        assert 4 * record.parameters <= record.weight_bytes <= stored
        if stage in (Stage.SIGLIP_VISION, Stage.SIGLIP_TEXT, Stage.SAM_ENCODER):
            of_model = sum(parameter.numel() for parameter in model.stage(stage).parameters())
            assert record.parameters == pytest.approx(of_model, rel=0.05)
