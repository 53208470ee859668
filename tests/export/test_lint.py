"""The lint finds, by node and module, what TensorRT refuses or half precision spoils; what we export has none of it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.errors import CheckFailedError
from rsrefseg.export.checks import check_graph
from rsrefseg.export.lint import Rule, lint_graph
from tests.support.exported import Exported

FLOAT, HALF, DOUBLE, INT64, UINT8 = (
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.DOUBLE,
    TensorProto.INT64,
    TensorProto.UINT8,
)


def node(operator: str, inputs: Sequence[str], outputs: Sequence[str] = ("y",), **attributes: object) -> NodeProto:
    return helper.make_node(operator, inputs, outputs, name=f"block.attn/{operator}", **attributes)


def made(*nodes: NodeProto, kind: int = FLOAT, opset: int = 18, **weights: np.ndarray) -> ModelProto:
    """A graph from ``x`` (2, 3, 4, 4) of ``kind`` and ``count`` (4,) int64 to ``y``, all types inferred."""
    graph = helper.make_graph(
        list(nodes),
        "made",
        [helper.make_tensor_value_info("x", kind, (2, 3, 4, 4)), helper.make_tensor_value_info("count", INT64, (4,))],
        [onnx.ValueInfoProto(name="y")],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    return onnx.shape_inference.infer_shapes(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)]), data_prop=True
    )


def indices(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


SCALES = np.array([1, 1, 2, 2], np.float32)
LAYER_NORM_IN_PIECES = (
    node("ReduceMean", ["x", "axes"], ["mean"]),
    node("Sub", ["x", "mean"], ["deviation"]),
    node("Mul", ["deviation", "deviation"], ["square"]),
    node("ReduceMean", ["square", "axes"], ["y"]),
)


@pytest.mark.parametrize(
    ("model", "rule", "told"),
    [
        (made(node("Relu", ["x"]), opset=21), Rule.OPSET, "opset 21"),
        (made(node("Relu", ["x"]), opset=16), Rule.OPSET, "opset 16"),
        (made(node("Det", ["x"])), Rule.OPERATOR, "Det"),
        (made(node("Softmax", ["x"]), kind=DOUBLE), Rule.FLOAT64, "float64"),
        (made(node("Constant", [], value=numpy_helper.from_array(np.zeros(1)))), Rule.FLOAT64, "float64"),
        (made(node("Neg", ["x"]), kind=TensorProto.BFLOAT16), Rule.TYPE, "bfloat16"),
        (made(node("Tile", ["x", "n"]), kind=UINT8, n=indices(1, 1, 1, 2)), Rule.UINT8, "uint8"),
        (made(node("Unsqueeze", ["x", "count"])), Rule.CONSTANT_INPUT, "'count'"),
        (made(node("Resize", ["x", "", "s"], mode="cubic"), s=SCALES), Rule.RESIZE, "'cubic'"),
        (made(node("Resize", ["x", "", "s"], mode="linear", antialias=1), s=SCALES), Rule.RESIZE, "antialiasing"),
        (made(*LAYER_NORM_IN_PIECES, axes=indices(1)), Rule.LAYER_NORM, "in pieces"),
        (
            made(node("LayerNormalization", ["x", "w"], ["y", "mean"]), w=np.ones(4, np.float32)),
            Rule.LAYER_NORM,
            "mean or deviation",
        ),
        (made(node("ReduceL2", ["x", "a"]), kind=HALF, a=indices(1)), Rule.HALF_SUM, "ReduceL2"),
        (
            made(node("LayerNormalization", ["x", "w"]), kind=HALF, w=np.ones(4, np.float16)),
            Rule.HALF_SUM,
            "LayerNormalization",
        ),
        (made(node("Add", ["x", "w"]), kind=HALF, w=np.float16([np.inf])), Rule.HALF_CONSTANT, "weight beyond"),
        (made(node("Add", ["count", "count"])), Rule.INT64_ARITHMETIC, "neither sizes nor indices"),
        (made(node("Resize", ["x", "", "", "count"], mode="linear")), Rule.DATA_DEPENDENT_SHAPE, "'count'"),
        (made(node("Reshape", ["x", "count"])), Rule.DATA_DEPENDENT_SHAPE, "'count'"),
    ],
)
def test_what_engines_refuse_is_found_by_rule(model: ModelProto, rule: Rule, told: str) -> None:
    findings = [finding for finding in lint_graph(model, Stage.SAM_DECODER) if finding.rule is rule]
    assert len(findings) >= 1, lint_graph(model, Stage.SAM_DECODER)
    assert "sam_decoder" in str(findings[0])
    assert told in str(findings[0])


def test_a_finding_names_its_node_and_the_module_behind_it() -> None:
    finding = lint_graph(made(node("Det", ["x"])), Stage.SAM_ENCODER)[0]
    assert (finding.node, finding.module) == ("block.attn/Det", "block.attn")
    assert "'block.attn/Det'" in str(finding)


def test_sizes_may_be_computed_and_a_plain_mean_taken() -> None:
    model = made(
        node("Shape", ["x"], ["shape"]),
        node("Mul", ["shape", "two"], ["twice"]),
        node("Expand", ["small", "twice"], ["wide"]),
        node("ReduceMean", ["wide", "axes"], ["y"]),
        two=indices(2),
        small=np.zeros((1, 1, 1, 1), np.float32),
        axes=indices(1),
    )
    assert lint_graph(model, Stage.SAM_DECODER) == ()


def test_an_uint8_image_may_only_be_cast() -> None:
    model = made(node("Cast", ["x"], ["z"], to=FLOAT), node("Sqrt", ["z"]), kind=UINT8)
    assert lint_graph(model, Stage.SAM_ENCODER) == ()


@pytest.mark.parametrize("stage", list(Stage))
def test_exported_graphs_have_no_finding(exported: Exported, stage: Stage, tmp_path: Path) -> None:
    path = Bundle.open(exported.bundle).graph_path(stage)
    onnx.shape_inference.infer_shapes_path(str(path), str(tmp_path / "typed.onnx"), check_type=True, strict_mode=True)
    model = onnx.load(tmp_path / "typed.onnx", load_external_data=False)
    assert lint_graph(model, stage, path.parent) == ()


def test_a_graph_with_a_finding_is_not_exported(exported: Exported, tmp_path: Path) -> None:
    """SAM's own export, which asks for the picture's size as a tensor, is what this is about."""
    bundle = Bundle.open(exported.bundle)
    contract = bundle.manifest.stages[Stage.SAM_DECODER].contract
    model = onnx.load(bundle.graph_path(Stage.SAM_DECODER))
    last = model.graph.node[-1]
    answer, last.output[0] = last.output[0], "small_logits"
    side = int(model.graph.output[0].type.tensor_type.shape.dim[-1].dim_value)
    model.graph.initializer.append(numpy_helper.from_array(indices(1), "one"))
    model.graph.initializer.append(numpy_helper.from_array(indices(1, side, side), "rest"))
    model.graph.node.extend(
        [
            helper.make_node("Cast", ["mask_prompt"], ["whole"], to=INT64, name="upscale/Cast"),
            helper.make_node("ReduceMax", ["whole"], ["most"], keepdims=0, name="upscale/ReduceMax"),
            helper.make_node("Reshape", ["most", "one"], ["orig_im_size"], name="upscale/Reshape"),
            helper.make_node("Concat", ["orig_im_size", "rest"], ["size"], axis=0, name="upscale/Concat"),
            helper.make_node("Expand", ["small_logits", "size"], [answer], name="upscale/Expand"),
        ]
    )
    path = tmp_path / "sam_decoder.onnx"
    onnx.save(model, path)
    with pytest.raises(CheckFailedError, match=r"decide a size.*'upscale/Expand'"):
        check_graph(path, contract)
