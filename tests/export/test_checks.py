"""The checks find, by node, what is not the contract, what engines cannot build and what half precision spoils."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage, stage_contracts
from rsrefseg.engines.errors import CheckFailedError
from rsrefseg.export.checks import check_graph, find_faults
from rsrefseg.export.graph import OPSET
from rsrefseg.model.model import RSRefSeg, geometry

FLOAT, HALF, DOUBLE, INT64, UINT8 = (
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.DOUBLE,
    TensorProto.INT64,
    TensorProto.UINT8,
)


@pytest.mark.parametrize("stage", Stage)
def test_exported_graphs_pass(
    bundle: Bundle, half_bundle: Bundle, fused_bundle: Bundle, model: RSRefSeg, stage: Stage
) -> None:
    contract = stage_contracts(geometry(model.config))[stage]
    for one in (bundle, half_bundle, fused_bundle):
        record = one.manifest.stages[stage]
        assert record.contract == contract
        check_graph(one.graph_path(stage), contract, record.opset)


# Faults in a real graph, which is of words, and in hand-made ones


def wrong_name(proto: ModelProto) -> None:
    proto.graph.output[0].name = "words"
    for node in proto.graph.node:
        node.output[:] = ["words" if name == "word_features" else name for name in node.output]


def wrong_order(proto: ModelProto) -> None:
    first, second = list(proto.graph.input)
    del proto.graph.input[:]
    proto.graph.input.extend([second, first])


def wrong_type(proto: ModelProto) -> None:
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.INT32


def fixed_size(proto: ModelProto) -> None:
    proto.graph.input[1].type.tensor_type.shape.dim[0].dim_value = 2


def other_dimension_name(proto: ModelProto) -> None:
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.shape.dim[0].dim_param = "batch"


def contradicting_size(proto: ModelProto) -> None:
    proto.graph.output[0].type.tensor_type.shape.dim[2].dim_value += 1


def other_domain(proto: ModelProto) -> None:
    proto.opset_import.append(helper.make_opsetid("com.microsoft", 1))
    proto.graph.node.append(helper.make_node("Gelu", ["word_features"], ["odd"], domain="com.microsoft"))


def branch(proto: ModelProto) -> None:
    output = helper.make_tensor_value_info("inside", TensorProto.BOOL, None)
    body = helper.make_graph([helper.make_node("Identity", ["yes"], ["inside"])], "body", [], [output])
    proto.graph.initializer.append(helper.make_tensor("yes", TensorProto.BOOL, [], [True]))
    proto.graph.node.append(helper.make_node("If", ["yes"], ["odd"], then_branch=body, else_branch=body))


def function(proto: ModelProto) -> None:
    node, opset = helper.make_node("Identity", ["x"], ["y"]), helper.make_opsetid("", OPSET)
    proto.functions.append(helper.make_function("own", "Same", ["x"], ["y"], [node], [opset]))
    proto.opset_import.append(helper.make_opsetid("own", 1))


def unknown_operator(proto: ModelProto) -> None:
    proto.graph.node.append(helper.make_node("Nonsense", ["word_features"], ["odd"]))


@pytest.mark.parametrize(
    ("fault", "key"),
    [
        (wrong_name, "words"),
        (wrong_order, "token_mask, input_ids"),
        (wrong_type, "'input_ids' as INT32|not valid ONNX"),
        (fixed_size, "'token_mask'"),
        (other_dimension_name, "'input_ids'"),
        (contradicting_size, "'word_features'|not valid ONNX"),
        (other_domain, "com.microsoft|not valid ONNX"),
        (branch, "control flow"),
        (function, "'Same'"),
        (unknown_operator, "not valid ONNX"),
    ],
)
def test_a_graph_that_is_not_what_it_should_be_is_refused(
    bundle: Bundle, tmp_path: Path, fault: Callable[[ModelProto], None], key: str
) -> None:
    contract, path = bundle.manifest.stages[Stage.SIGLIP_TEXT].contract, tmp_path / "siglip_text.onnx"
    proto = onnx.load(bundle.graph_path(Stage.SIGLIP_TEXT))
    onnx.save(proto, path)
    check_graph(path, contract)
    fault(proto)
    onnx.save(proto, path)
    with pytest.raises(CheckFailedError, match=rf"siglip_text.*({key})"):
        check_graph(path, contract)
    assert [file.name for file in tmp_path.iterdir()] == [path.name], "the check leaves nothing behind"


def node(operator: str, inputs: Sequence[str], outputs: Sequence[str] = ("y",), **attributes: object) -> NodeProto:
    return helper.make_node(operator, inputs, outputs, name=f"block.attn/{operator}", **attributes)


def graph_of(*nodes: NodeProto, kind: int = FLOAT, opset: int = OPSET, **weights: np.ndarray) -> ModelProto:
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


@pytest.mark.parametrize(
    ("model", "key"),
    [
        (graph_of(node("Relu", ["x"]), opset=21), "opset 21"),
        (graph_of(node("Softmax", ["x"]), kind=DOUBLE), "float64"),
        (graph_of(node("Cast", ["x"], ["z"], to=DOUBLE), node("Cast", ["z"], to=FLOAT)), "'z' in float64"),
        (graph_of(node("Constant", [], value=numpy_helper.from_array(np.zeros(1)))), "float64"),
        (graph_of(node("Relu", ["x"]), wide=np.zeros(1)), "'wide' in float64"),
        (graph_of(node("Tile", ["x", "n"]), kind=UINT8, n=indices(1, 1, 1, 2)), "uint8"),
        (graph_of(node("ReduceL2", ["x", "a"]), kind=HALF, a=indices(1)), "ReduceL2 in half"),
        (
            graph_of(node("LayerNormalization", ["x", "w"]), kind=HALF, w=np.ones(4, np.float16)),
            "LayerNormalization in half",
        ),
        (graph_of(node("Add", ["x", "w"]), kind=HALF, w=np.float16([np.inf])), "'w' beyond"),
        (graph_of(node("Resize", ["x", "", "", "count"], mode="linear")), "'count'"),
        (graph_of(node("Reshape", ["x", "count"])), "'count'"),
    ],
)
def test_faults_are_found(model: ModelProto, key: str, tmp_path: Path) -> None:
    assert any(key in fault for fault in find_faults(model, tmp_path)), list(find_faults(model, tmp_path))


def test_sizes_may_be_computed_and_a_plain_mean_taken(tmp_path: Path) -> None:
    model = graph_of(
        node("Shape", ["x"], ["shape"]),
        node("Mul", ["shape", "two"], ["twice"]),
        node("Expand", ["small", "twice"], ["wide"]),
        node("ReduceMean", ["wide", "axes"], ["y"]),
        two=indices(2),
        small=np.zeros((1, 1, 1, 1), np.float32),
        axes=indices(1),
    )
    assert list(find_faults(model, tmp_path)) == []


def test_an_uint8_input_may_be_cast(tmp_path: Path) -> None:
    model = graph_of(node("Cast", ["x"], ["z"], to=FLOAT), node("Sqrt", ["z"]), kind=UINT8)
    assert list(find_faults(model, tmp_path)) == []
