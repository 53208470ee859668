"""Half precision is written in the model: what is half, what stays float32, and that both give the same answers."""

import copy
import math
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from rsrefseg.bench.parity.parity import run_parity
from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.export.costs import count_flops
from rsrefseg.export.precision.arithmetic import HalfArithmetic
from rsrefseg.export.precision.half_blocks import TABLES, convert_to_half, half_blocks
from rsrefseg.export.precision.half_model import open_half_model
from rsrefseg.export.precision.plan import ALWAYS_FP32, read_plan, write_plan
from rsrefseg.export.settings import Target, default_attention
from rsrefseg.inference.operators import SigmoidGelu
from rsrefseg.inference.projections import FoldedCrossAttention
from rsrefseg.inference.stages import fold_for_inference
from rsrefseg.model.config import model_config
from rsrefseg.model.model import RSRefSeg, build_model, build_stage
from tests.support.commands import assert_refused, run_here
from tests.support.exported import Exported
from tests.support.places import Capsys
from tests.support.runs import refused
from tests.support.small import small_config
from tests.support.stage_inputs import as_tuple, stage_inputs

MOVES = {"Reshape", "Transpose", "Slice", "Squeeze", "Unsqueeze", "Pad", "Expand", "Identity", "Concat", "Gather"}


def graph_of(bundle: Bundle, stage: Stage) -> onnx.GraphProto:
    return onnx.load(bundle.graph_path(stage)).graph


def test_half_precision_holds_against_float32_pytorch(half_bundle: Bundle, exported: Exported) -> None:
    report = run_parity(half_bundle.root, "onnxruntime", exported.data, "val", exported.run)
    assert report.precision == "fp16"
    assert report.holds
    assert max(row.relative_l2 for row in report.tensors) <= 5e-3  # half of what parity allows
    assert min(row.relative_l2 for row in report.tensors if row.stage is not Stage.ATTN_PROMPTER) > 1e-6
    assert report.data is not None
    assert abs(report.data.giou_difference) <= 0.002


def test_heavy_weights_are_half_and_norms_are_float32(half_bundle: Bundle, stage: Stage) -> None:
    graph = graph_of(half_bundle, stage)
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    kept = tuple(module for module in ALWAYS_FP32[stage] if module != ".")
    for tensor in graph.initializer:
        owner = tensor.name.rpartition(".")[0]
        if owner and len(tensor.dims) > 1 and not owner.startswith(kept):
            assert tensor.data_type == TensorProto.FLOAT16, tensor.name
    norms = [node for node in graph.node if node.op_type == "LayerNormalization"]
    assert all(kinds[name] == TensorProto.FLOAT for node in norms for name in node.input[1:])
    assert not {"Pow", "Tanh"} & {node.op_type for node in graph.node}, "the cubic of GELU's tanh form is written out"


def test_nothing_is_cast_to_float32_only_to_be_cast_back(half_bundle: Bundle, stage: Stage) -> None:
    graph = graph_of(half_bundle, stage)
    makers = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type == "Cast" and helper.get_node_attr_value(node, "to") == TensorProto.FLOAT16:
            source = makers.get(node.input[0])
            while source is not None and source.op_type in MOVES:
                source = makers.get(source.input[0])
            assert source is None or source.op_type != "Cast", f"{node.name} undoes {source.name}"


def test_the_manifest_says_what_is_float32_and_weights_take_half_the_bytes(
    bundle: Bundle, half_bundle: Bundle, model: RSRefSeg
) -> None:
    attention = default_attention(model.config.sam, Target.TENSORRT)
    for stage, record in half_bundle.manifest.stages.items():
        float32 = bundle.manifest.stages[stage]
        assert (record.precision, float32.precision_plan) == ("fp16", ())
        assert {part.module: part.reason for part in record.precision_plan} == ALWAYS_FP32[stage]
        same_form = fold_for_inference(copy.deepcopy(model.stage(stage)), attention)
        assert record.flops == pytest.approx(count_flops(same_form, record.contract), rel=0.01)
    half, full = (sum(record.weight_bytes for record in one.manifest.stages.values()) for one in (half_bundle, bundle))
    assert half <= 0.62 * full  # parts that stay float32 are as large as in a model of 1000 times its size


def test_of_a_large_model_nearly_all_weights_are_half() -> None:
    for stage in (Stage.SIGLIP_VISION, Stage.SIGLIP_TEXT, Stage.SAM_ENCODER):
        with torch.device("meta"):
            module = build_stage(stage, model_config("b"))
        blocks = map(module.get_submodule, half_blocks(stage, module))
        half = sum(parameter.numel() for block in blocks for parameter in block.parameters())
        half += sum(module.get_parameter(name).numel() for name in TABLES.get(stage, ()))
        assert half >= 0.998 * sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize("padding", ["fixed", "longest"])
def test_a_half_stage_gives_what_float32_does_whichever_block_stays_float32(stage: Stage, padding: str) -> None:
    model = build_model(small_config(text_padding=padding), seed=2)
    inputs = stage_inputs(model, stage)
    with torch.no_grad():
        wanted = as_tuple(model.stage(stage)(*inputs))
    for kept in (None, *half_blocks(stage, model.stage(stage))):
        half = copy.deepcopy(model.stage(stage))
        if kept is None:
            convert_to_half(stage, half)
        else:
            assert convert_to_half(stage, half, {kept: "for this test"})[kept] == "for this test"
            assert all(parameter.dtype == torch.float32 for parameter in half.get_submodule(kept).parameters())
        with torch.no_grad(), HalfArithmetic():
            found = as_tuple(half(*inputs))
        for left, right in zip(wanted, found, strict=True):
            assert right.dtype == torch.float32
            assert (left - right).norm() <= 5e-3 * left.norm()


def test_a_weight_that_does_not_fit_into_half_keeps_its_block_float32() -> None:
    model = build_model(small_config(), seed=2)
    neck = model.sam_encoder.image_encoder.neck[0]
    assert isinstance(neck, nn.Conv2d)
    with torch.no_grad():
        neck.weight[0, 0] = 70_000.0
    kept = convert_to_half(Stage.SAM_ENCODER, model.sam_encoder)
    assert "70,000" in kept["image_encoder.neck.0"]
    assert "image_encoder.neck.2" not in kept
    assert neck.weight.dtype == torch.float32
    assert model.sam_encoder.image_encoder.neck[2].weight.dtype == torch.float16


def test_gelu_is_finite_and_right_for_every_finite_half() -> None:
    values = torch.from_numpy(np.arange(65536, dtype=np.uint16).view(np.float16).copy())
    values = values[values.isfinite()]
    assert len(values) == 63_488
    found = SigmoidGelu()(values)
    assert found.dtype == torch.float16
    assert found.isfinite().all()
    wanted = nn.functional.gelu(values.double(), approximate="tanh")
    # A few roundings of 2^-11 each; the largest where the sigmoid falls off and its argument is near 10.
    assert ((found.double() - wanted).abs() <= 4e-3 * wanted.abs() + 5e-4).all()
    exact = SigmoidGelu()(values.double())
    assert (exact - wanted).abs().max() <= 1e-9


def test_the_decoders_attention_scales_before_it_multiplies() -> None:
    """The product of one head is 16 * 72^2 = 82,944; the scaled one is a quarter of it."""
    original = build_model(small_config(), seed=2).sam_decoder.mask_decoder.transformer.layers[0].self_attn
    with torch.no_grad(), HalfArithmetic():
        original.q_proj.weight.copy_(torch.eye(32) * 60)
        original.k_proj.weight.copy_(torch.eye(32) * 60)
        large = torch.full((1, 3, 32), 1.2).half()
        assert not original.half()(large, large, large).isfinite().all()
        assert FoldedCrossAttention(original.float()).half()(large, large, large).isfinite().all()


def test_half_arithmetic_sums_in_float32_and_overflows_in_its_result() -> None:
    left, right = torch.full((1, 4096), 4.0).half(), torch.full((4096, 1), 3.0).half()
    with HalfArithmetic():
        assert (left @ right).item() == 49_152.0
        assert (left @ (2 * right)).item() == math.inf
        assert nn.functional.linear(left, right.T).dtype == torch.float16
        query = torch.full((1, 1, 2, 64), 200.0).half()
        logits = nn.functional.scaled_dot_product_attention(query, query, query)
    assert logits.isnan().all()  # 200 * 200 * 64 / 8 passes 65,504


@pytest.mark.parametrize(
    ("content", "key"),
    [
        ("{", "not a precision plan"),
        ('{"sam": []}', "'sam'"),
        ('{"sam_encoder": [{"module": "neck"}]}', "reason"),
        ('{"sam_encoder": [{"module": "", "reason": "x"}]}', "a module and a reason"),
    ],
)
def test_what_is_not_a_plan_is_refused_by_name(tmp_path: Path, content: str, key: str) -> None:
    (tmp_path / "plan.json").write_text(content)
    with refused("plan.json", key):
        read_plan(tmp_path / "plan.json")


def test_the_command_refuses_a_plan_before_any_work(exported: Exported, tmp_path: Path, capsys: Capsys) -> None:
    plan, out = tmp_path / "plan.json", tmp_path / "bundle"
    options = ("export", exported.run, "--plan", plan, "--out", out)
    assert_refused(run_here(capsys, *options), "--plan", "--fp16")
    assert_refused(run_here(capsys, *options, "--fp16"), "plan.json", "--bisect")
    write_plan(plan, {Stage.SAM_ENCODER: {"image_encoder.blocks.9.mlp": "why"}})
    facts = ("sam_encoder", "image_encoder.blocks.9.mlp", "image_encoder.blocks.1.mlp")
    assert_refused(run_here(capsys, *options, "--fp16"), *facts)
    assert not out.exists()


@pytest.mark.parametrize("stage", Stage)
def test_half_precision_with_sums_in_fp32_is_within_tolerance(exported: Exported, stage: Stage) -> None:
    model = open_half_model(exported.bundle, exported.run)
    module = model.load(stage)
    convert_to_half(stage, module, fp32_sums=True)
    assert model.check_module(stage, module).passed


def test_the_manifest_names_stages_that_sum_in_fp32(exported: Exported, tmp_path: Path, capsys: Capsys) -> None:
    options = ("export", exported.run, "--out", tmp_path / "bundle", "--fp32-sums", "sam_encoder")
    assert_refused(run_here(capsys, *options), "--fp32-sums", "--fp16")
    assert_refused(run_here(capsys, *options[:-1], "sam", "--fp16"), "'sam'", "sam_encoder")
    assert run_here(capsys, *options, "--fp16", "--no-check").code == 0
    stages = Bundle.open(tmp_path / "bundle").manifest.stages
    assert {stage: record.fp32_sums for stage, record in stages.items()} == {
        stage: stage is Stage.SAM_ENCODER for stage in Stage
    }
