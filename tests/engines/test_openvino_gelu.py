"""GELUs are rewritten for OpenVINO: the same values, one operator, and products that nothing is joined to."""

from typing import Any

import numpy as np
import pytest

from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.openvino.engine import OpenVinoEngine
from rsrefseg.engines.openvino.gelu import rewrite_gelus
from rsrefseg.engines.openvino.library import core
from tests.support.engines import exact
from tests.support.exported import Exported

openvino = pytest.importorskip("openvino")


def gelu(kind: str, dtype: Any = np.float32) -> Any:
    """As the exporter writes it, on 1,201 values."""
    ops = openvino.opset13
    x = ops.parameter([1201], dtype)

    def number(value: float) -> Any:
        return ops.constant(np.array(value, dtype))

    if kind == "Erf":
        inner = ops.erf(ops.divide(x, number(2**0.5)))
    else:
        cube = ops.multiply(ops.power(x, number(3)), number(0.044715))
        inner = ops.tanh(ops.multiply(ops.add(x, cube), number((2 / np.pi) ** 0.5)))
    return openvino.Model([ops.multiply(ops.multiply(x, number(0.5)), ops.add(inner, number(1)))], [x], "gelu")


def computed(graph: Any, x: np.ndarray) -> np.ndarray:
    model = core().compile_model(graph, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    return np.array(model([x])[0])


@pytest.mark.parametrize("kind", ["Tanh", "Erf"])
def test_values_and_types_stay_the_same(kind: str) -> None:
    x = np.concatenate([np.linspace(-8, 8, 1197), [-1e4, -60, 60, 1e4]]).astype(np.float32)
    plain, graph = gelu(kind), gelu(kind)
    assert rewrite_gelus(graph) == 1
    found = computed(graph, x)
    np.testing.assert_allclose(found, computed(plain, x), rtol=1e-6, atol=1e-6)
    if kind == "Tanh":
        u = (2 / np.pi) ** 0.5 * (x.astype(float) + 0.044715 * x.astype(float) ** 3)
        with np.errstate(over="ignore"):
            exact_values = x / (1 + np.exp(-2 * u))
        # 1 + tanh(u) in FP32 has 6e-8 of 1 as its smallest step; this keeps the digits of what is far below that.
        np.testing.assert_allclose(found[x > -5], exact_values[x > -5], rtol=1e-5)
    half = gelu(kind, np.float16)
    assert rewrite_gelus(half) == 1
    assert {str(node.get_element_type().to_dtype()) for node in half.get_ordered_ops()} == {"float16"}


def test_other_uses_are_left_alone() -> None:
    ops = openvino.opset13
    x = ops.parameter([4], np.float32)
    two = ops.constant(np.float32(2))
    others = [ops.add(ops.tanh(x), two), ops.multiply(ops.erf(x), two), ops.add(ops.tanh(x), x)]
    graph = openvino.Model(others, [x], "others")
    before = [node.get_type_name() for node in graph.get_ordered_ops()]
    assert rewrite_gelus(graph) == 0
    assert [node.get_type_name() for node in graph.get_ordered_ops()] == before


@pytest.mark.parametrize("stage", [Stage.SIGLIP_VISION, Stage.SIGLIP_TEXT, Stage.SAM_ENCODER])
def test_nothing_is_joined_to_the_products_of_an_encoder_in_fp32(
    exported: Exported, monkeypatch: pytest.MonkeyPatch, stage: Stage
) -> None:
    bundle = Bundle.open(exported.bundle)
    assert joined_to_products(exact(bundle), stage) == []
    monkeypatch.setattr("rsrefseg.engines.openvino.engine.rewrite_gelus", lambda graph: 0)
    assert joined_to_products(exact(bundle), stage), "OpenVINO no longer joins them: rewriting is of no use"


def joined_to_products(engine: OpenVinoEngine, stage: Stage) -> list[str]:
    """Names of what the compiled stage computes inside fully connected layers, beside these themselves."""
    joined = []
    with engine:
        engine.load(stage)
        for node in engine._models[stage].get_runtime_model().get_ordered_ops():
            facts = {name: node.get_rt_info()[name].astype(str) for name in ("layerType", "originalLayersNames")}
            if facts["layerType"] == "FullyConnected":
                joined += facts["originalLayersNames"].split(",")[1:]
    return joined
