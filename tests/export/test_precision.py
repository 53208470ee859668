"""Half precision is written in the model: what is half, what stays float32, and that both give the same answers."""

import math
from collections import Counter
from pathlib import Path

import msgspec
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import nn

from rsrefseg.bench.parity.parity import run_parity
from rsrefseg.bench.parity.report import ParityReport
from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.bundle.manifest import StageRecord, read_record
from rsrefseg.engines.errors import BundleError
from rsrefseg.export.checks import check_graph
from rsrefseg.export.export import export_run
from rsrefseg.export.graph import export_graph
from rsrefseg.export.precision.arithmetic import HalfArithmetic
from rsrefseg.export.precision.half_blocks import TABLES, check_plan, islands_of, make_half
from rsrefseg.export.precision.plan import ALWAYS_FP32, Fp32Part, PrecisionPlan, read_plan, write_plan
from rsrefseg.inference.operators import SigmoidGelu, fold_batch_norm
from rsrefseg.inference.projections import FoldedCrossAttention
from rsrefseg.model.config import model_config
from rsrefseg.model.model import RSRefSeg, build_model, build_stage
from rsrefseg.model.prompter import ConvNormAct
from rsrefseg.model.stages import model_contracts
from tests.support.commands import assert_refused, run_here
from tests.support.exported import Exported
from tests.support.printing import printed
from tests.support.runs import refused
from tests.support.small import small_config

MOVES = {"Reshape", "Transpose", "Slice", "Squeeze", "Unsqueeze", "Pad", "Expand", "Identity", "Concat", "Gather"}
# Casts to float16 and back to float32 in each graph of the small model: one vision, one text and two SAM blocks.
CASTS = {
    # Into patch embedding, attention, MLP; out of these three. The small position table is a constant.
    Stage.SIGLIP_VISION: (3, 3),
    # Into attention, MLP, head; out of the token table and these three.
    Stage.SIGLIP_TEXT: (3, 4),
    # Features and both filters into what is left of the first convolution; the rest is one island behind it.
    Stage.ATTN_PROMPTER: (3, 1),
    # Into patch embedding, two neck convolutions, attention and MLP of two blocks; out of these seven.
    Stage.SAM_ENCODER: (7, 7),
    # Seven attentions with up to three tensors, two MLPs, one upscaling, of 22 tensors seven are as before; out
    # of these ten.
    Stage.SAM_DECODER: (15, 10),
}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def half_bundle(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small trained run in half precision, by the default plan."""
    torch.set_num_threads(1)
    path = tmp_path_factory.mktemp("half") / "bundle"
    export_run(exported.run, path, PrecisionPlan())
    return path


@pytest.fixture(scope="module")
def report(half_bundle: Path, exported: Exported) -> ParityReport:
    return run_parity(half_bundle, "onnxruntime", exported.data, "val", exported.run)


def graph_of(bundle: Path, stage: Stage) -> onnx.GraphProto:
    return onnx.load(Bundle.open(bundle).graph_path(stage)).graph


# The bundle


def test_half_precision_holds_against_float32_pytorch(report: ParityReport) -> None:
    assert report.precision == "fp16"
    assert report.holds
    assert max(row.error.relative_l2 for row in report.tensors) <= 5e-3  # half of what parity allows
    assert min(row.error.relative_l2 for row in report.tensors if row.stage is not Stage.ATTN_PROMPTER) > 1e-6
    assert report.data is not None
    assert abs(report.data.giou_difference) <= 0.002


def test_the_report_says_what_a_cpu_cannot_show(report: ParityReport) -> None:
    assert any("float32" in note and "--bisect" in note for note in report.notes)
    assert "--bisect" in printed(report)


def test_graphs_take_and_give_what_their_float32_counterparts_do(exported: Exported, half_bundle: Path) -> None:
    float32, half = Bundle.open(exported.bundle).manifest, Bundle.open(half_bundle).manifest
    for stage in Stage:
        assert half.stages[stage].contract == float32.stages[stage].contract
        assert half.stages[stage].precision == "fp16"
        assert half.stages[stage].flops == pytest.approx(float32.stages[stage].flops, rel=0.01)
        check_graph(half_bundle / f"{stage}.onnx", half.stages[stage].contract)


@pytest.mark.parametrize("stage", Stage)
def test_heavy_weights_are_half_and_norms_are_float32(half_bundle: Path, stage: Stage) -> None:
    graph = graph_of(half_bundle, stage)
    kinds = {tensor.name: tensor.data_type for tensor in graph.initializer}
    kept = {part.module for part in ALWAYS_FP32[stage]}
    for tensor in graph.initializer:
        owner = tensor.name.rpartition(".")[0]
        if owner and len(tensor.dims) > 1 and not any(owner.startswith(module) for module in kept if module != "."):
            assert tensor.data_type == TensorProto.FLOAT16, tensor.name
    norms = [node for node in graph.node if node.op_type == "LayerNormalization"]
    assert all(kinds[name] == TensorProto.FLOAT for node in norms for name in node.input[1:])
    for node in graph.node:
        if node.op_type in ("Pow", "Tanh"):
            pytest.fail(f"{node.name}: the cubic of GELU's tanh form is written out")


@pytest.mark.parametrize("stage", Stage)
def test_casts_are_those_at_the_shores_of_islands(half_bundle: Path, stage: Stage) -> None:
    graph = graph_of(half_bundle, stage)
    types = {tensor.name: tensor.data_type for tensor in graph.initializer}
    inferred = onnx.shape_inference.infer_shapes_path
    inferred(str(half_bundle / f"{stage}.onnx"), str(half_bundle.parent / "inferred.onnx"), strict_mode=True)
    values = onnx.load(half_bundle.parent / "inferred.onnx", load_external_data=False).graph
    for value in (*values.value_info, *values.input, *values.output):
        types[value.name] = value.type.tensor_type.elem_type
    casts = [(types[node.input[0]], types[node.output[0]]) for node in graph.node if node.op_type == "Cast"]
    counted = Counter(casts)
    into, out_of = (TensorProto.FLOAT, TensorProto.FLOAT16), (TensorProto.FLOAT16, TensorProto.FLOAT)
    assert (counted[into], counted[out_of]) == CASTS[stage]


@pytest.mark.parametrize("stage", Stage)
def test_nothing_is_cast_to_float32_only_to_be_cast_back(half_bundle: Path, stage: Stage) -> None:
    graph = graph_of(half_bundle, stage)
    makers = {name: node for node in graph.node for name in node.output}

    def target(node: onnx.NodeProto) -> int:
        return next((attribute.i for attribute in node.attribute if attribute.name == "to"), 0)

    for node in graph.node:
        if node.op_type == "Cast" and target(node) == TensorProto.FLOAT16:
            source = makers.get(node.input[0])
            while source is not None and source.op_type in MOVES:
                source = makers.get(source.input[0])
            assert source is None or source.op_type != "Cast", f"{node.name} undoes {source.name}"


def test_the_manifest_says_what_is_float32_and_why(half_bundle: Path, exported: Exported) -> None:
    stages = Bundle.open(half_bundle).manifest.stages
    for stage, record in stages.items():
        told = [(part.module, part.reason) for part in record.precision_plan]
        assert told == [(part.module, part.reason) for part in ALWAYS_FP32[stage]]
        assert all(len(reason) > 30 for _, reason in told)
    assert all(record.precision_plan == () for record in Bundle.open(exported.bundle).manifest.stages.values())


def test_a_float32_stage_with_a_plan_for_half_is_no_manifest(exported: Exported) -> None:
    record = msgspec.to_builtins(Bundle.open(exported.bundle).manifest.stages[Stage.SIGLIP_TEXT])
    record["precision_plan"] = [{"module": "head", "reason": "for this test alone"}]
    with pytest.raises(BundleError, match="float32"):
        read_record(record, StageRecord)


def test_weights_take_half_the_bytes(exported: Exported, half_bundle: Path) -> None:
    def weight_bytes(bundle: Path) -> int:
        return sum(
            math.prod(tensor.dims) * (2 if tensor.data_type == TensorProto.FLOAT16 else 4)
            for stage in Stage
            for tensor in graph_of(bundle, stage).initializer
            if tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16)
        )

    # The parts that stay float32 are as large in this small model as in one a thousand times its size.
    assert weight_bytes(half_bundle) <= 0.62 * weight_bytes(exported.bundle)


def test_of_a_large_model_nearly_all_weights_are_half() -> None:
    for stage in (Stage.SIGLIP_VISION, Stage.SIGLIP_TEXT, Stage.SAM_ENCODER):
        with torch.device("meta"):
            module = build_stage(stage, model_config("b"))
        blocks = [module.get_submodule(island.name) for island in islands_of(stage, module)]
        half = sum(parameter.numel() for block in blocks for parameter in block.parameters())
        half += sum(module.get_parameter(name).numel() for name in TABLES.get(stage, ()))
        assert half >= 0.998 * sum(parameter.numel() for parameter in module.parameters())


# The modules


@pytest.mark.parametrize("stage", Stage)
@pytest.mark.parametrize("padding", ["fixed", "longest"])
def test_a_half_stage_in_pytorch_gives_what_the_float32_one_does(stage: Stage, padding: str) -> None:
    config = small_config(text_padding=padding)
    model, other = build_model(config, seed=2), build_model(config, seed=2)
    half = other.stage(stage)
    make_half(stage, half)
    inputs = real_inputs(model, stage)
    with torch.no_grad():
        wanted = model.stage(stage)(*inputs)
        with HalfArithmetic():
            found = half(*inputs)
    for left, right in zip(as_tuple(wanted), as_tuple(found), strict=True):
        assert right.dtype == torch.float32
        assert (left - right).norm() <= 5e-3 * left.norm()


def real_inputs(model: RSRefSeg, stage: Stage) -> tuple[torch.Tensor, ...]:
    noise = torch.Generator().manual_seed(4)
    inputs = []
    for spec in model_contracts(model)[stage].inputs:
        shape = spec.sized(phrases=2, images=1)
        if spec.dtype == "float32":
            inputs.append(torch.randn(shape, generator=noise))
        elif spec.dtype == "bool":
            mask = torch.zeros(shape, dtype=torch.bool)
            mask[:, :5] = True
            inputs.append(mask)
        else:
            inputs.append(torch.randint(0, 30, shape, generator=noise, dtype=getattr(torch, spec.dtype)))
    return tuple(inputs)


def as_tuple(value: object) -> tuple[torch.Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def test_published_padding_exports_in_half_precision(tmp_path: Path) -> None:
    model = build_model(small_config(text_padding="longest"), seed=5)
    contract = model_contracts(model)[Stage.SIGLIP_TEXT]
    make_half(Stage.SIGLIP_TEXT, model.siglip_text)
    export_graph(model.siglip_text, contract, tmp_path / "siglip_text.onnx")
    check_graph(tmp_path / "siglip_text.onnx", contract)


@pytest.mark.parametrize("stage", Stage)
def test_any_block_can_stay_float32(stage: Stage) -> None:
    model = build_model(small_config(), seed=2)
    for island in islands_of(stage, model.stage(stage)):
        half = build_model(small_config(), seed=2).stage(stage)
        told = make_half(stage, half, (Fp32Part(island.name, "for this test alone"),))
        assert told[-1] == Fp32Part(island.name, "for this test alone")
        kept = half.get_submodule(island.name)
        assert all(parameter.dtype == torch.float32 for parameter in kept.parameters())
        with torch.no_grad(), HalfArithmetic():
            results = half(*real_inputs(model, stage))
        assert all(result.isfinite().all() for result in as_tuple(results))


def test_a_weight_that_does_not_fit_into_half_keeps_its_block_float32() -> None:
    model = build_model(small_config(), seed=2)
    neck = model.sam_encoder.image_encoder.neck[0]
    assert isinstance(neck, nn.Conv2d)
    with torch.no_grad():
        neck.weight[0, 0] = 70_000.0
    told = make_half(Stage.SAM_ENCODER, model.sam_encoder)
    assert told[-1].module == "image_encoder.neck.0"
    assert "70,000" in told[-1].reason
    assert model.sam_encoder.image_encoder.neck[0].weight.dtype == torch.float32
    assert model.sam_encoder.image_encoder.neck[2].weight.dtype == torch.float16


# The operators, over everything float16 can say


def every_half() -> torch.Tensor:
    """All finite numbers of float16."""
    values = torch.from_numpy(np.arange(65536, dtype=np.uint16).view(np.float16).copy())
    return values[values.isfinite()]


def test_gelu_is_finite_and_right_for_every_finite_half() -> None:
    values = every_half()
    assert len(values) == 63_488
    found = SigmoidGelu()(values)
    assert found.dtype == torch.float16
    assert found.isfinite().all()
    wanted = nn.functional.gelu(values.double(), approximate="tanh")
    error = (found.double() - wanted).abs()
    # A few roundings of 2^-11 each; the largest lie where the sigmoid falls off and its argument is near 10.
    assert (error <= 4e-3 * wanted.abs() + 5e-4).all()


def test_gelu_is_the_published_one_in_float32() -> None:
    values = torch.linspace(-60, 60, 100_001)
    wanted = nn.functional.gelu(values, approximate="tanh")
    assert (SigmoidGelu()(values) - wanted).abs().max() <= 2e-6


def test_the_decoders_attention_scales_before_it_multiplies() -> None:
    """Queries and keys of 120 in 64 channels: the product is 921,600, the logits are 115,200 / 8 and less."""
    original = build_model(small_config(), seed=2).sam_decoder.mask_decoder.transformer.layers[0].self_attn
    given = torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(0))
    scaled = FoldedCrossAttention(original)
    with torch.no_grad():
        wanted = original(given, given, given)
        assert (scaled(given, given, given) - wanted).abs().max() <= 1e-6 * wanted.abs().max()
        original.q_proj.weight.copy_(torch.eye(32) * 60)
        original.k_proj.weight.copy_(torch.eye(32) * 60)
        scaled = FoldedCrossAttention(original)
        large = torch.full((1, 3, 32), 1.2)
        assert 16 * 72.0**2 > 65_504  # the product of one head
        with HalfArithmetic():
            assert scaled.half()(large.half(), large.half(), large.half()).isfinite().all()


def test_folding_batch_norm_changes_nothing_but_the_last_digits() -> None:
    block = ConvNormAct(8, 4, kernel_size=3).eval()
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in (block.bn.weight, block.bn.bias, block.bn.running_mean):
            assert tensor is not None
            tensor.copy_(torch.randn(4, generator=noise))
        assert block.bn.running_var is not None
        block.bn.running_var.copy_(torch.tensor([1e-9, 1.0, 50.0, 1e6]))  # the first would be 0 in half
        given = torch.randn(1, 8, 5, 5, generator=noise)
        wanted = block(given)
        fold_batch_norm(block)
        assert (block(given) - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in block.modules())


def test_half_arithmetic_sums_in_float32_and_overflows_in_its_result() -> None:
    left, right = torch.full((1, 4096), 4.0).half(), torch.full((4096, 1), 3.0).half()
    with HalfArithmetic():
        assert (left @ right).item() == 49_152.0
        assert (left @ (2 * right)).item() == math.inf
        assert nn.functional.linear(left, right.T).dtype == torch.float16
        query = torch.full((1, 1, 2, 64), 200.0).half()
        logits = nn.functional.scaled_dot_product_attention(query, query, query)
    assert logits.isnan().all()  # 200 * 200 * 64 / 8 passes 65,504


# Plans


def test_a_plan_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    plan = PrecisionPlan().with_blocks(Stage.SIGLIP_VISION, [Fp32Part("encoder.layers.0.mlp", "why")])
    write_plan(tmp_path / "plan.json", plan)
    assert read_plan(tmp_path / "plan.json") == plan
    again = plan.with_blocks(Stage.SIGLIP_VISION, [Fp32Part("encoder.layers.0.mlp", "another reason")])
    assert again == plan
    assert PrecisionPlan.from_json({}) == PrecisionPlan()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "no precision plan"),
        ("[]", "JSON object"),
        ('{"sam": []}', "unknown stage 'sam'"),
        ('{"sam_encoder": {}}', "must be a list"),
        ('{"sam_encoder": ["neck"]}', "'neck' instead of a module"),
        ('{"sam_encoder": [{"module": "neck"}]}', "instead of a module and a reason"),
        ('{"sam_encoder": [{"module": "", "reason": "x"}]}', "a module and a reason"),
    ],
)
def test_what_is_no_plan_is_refused_by_name(tmp_path: Path, content: str, told: str) -> None:
    (tmp_path / "plan.json").write_text(content)
    with refused("plan.json", told):
        read_plan(tmp_path / "plan.json")


def test_a_block_that_the_model_does_not_have_is_refused_before_any_work() -> None:
    plan = PrecisionPlan({Stage.SIGLIP_VISION: (Fp32Part("encoder.layers.7.mlp", "why"),)})
    with refused("encoder.layers.7.mlp", "siglip_vision", "encoder.layers.0.mlp"):
        check_plan(plan, small_config())
    check_plan(plan, model_config("b"))


def test_the_command_exports_by_a_plan(exported: Exported, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, out = tmp_path / "plan.json", tmp_path / "bundle"
    ran = run_here(capsys, "export", exported.run, "--plan", plan, "--out", out)
    assert_refused(ran, "--plan", "--fp16")
    assert_refused(
        run_here(capsys, "export", exported.run, "--fp16", "--plan", plan, "--out", out), "plan.json", "--bisect"
    )
    write_plan(plan, PrecisionPlan({Stage.SAM_ENCODER: (Fp32Part("image_encoder.blocks.9.mlp", "why"),)}))
    ran = run_here(capsys, "export", exported.run, "--fp16", "--plan", plan, "--out", out)
    assert_refused(ran, "image_encoder.blocks.9.mlp", "image_encoder.blocks.1.mlp")
    assert not out.exists()
