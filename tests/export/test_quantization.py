"""INT8 export: which layers are quantised, and what stays in floating point."""

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from rsrefseg.engines.backends import select_backend
from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.comparison import mask_iou, tensor_error
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.bundle.manifest import NOT_JUDGED_NOTE
from rsrefseg.engines.bundle.reference import load_reference
from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.segmenter import Segmenter
from rsrefseg.engines.tensorrt.check import check_compilation, default_gpus
from rsrefseg.export.quantization.layers import find_layers, halve_tables, load_graph
from rsrefseg.export.quantization.quantizer import quantize_graph
from rsrefseg.export.quantization.sensitivity import layer_errors
from rsrefseg.export.quantization.settings import QUANTIZED_STAGES, QuantizationSettings
from rsrefseg.export.settings import Target, choose_quantization
from tests.support.commands import run_here
from tests.support.exported import Exported
from tests.support.places import Capsys
from tests.support.quantized import DYNAMIC, quantized, static


@pytest.fixture(scope="module")
def int8(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return quantized(bundle, tmp_path_factory.mktemp("int8") / "bundle")


def test_the_encoders_are_int8_and_the_rest_as_it_was(bundle: Bundle, int8: Bundle) -> None:
    for stage in Stage:
        before, after = bundle.manifest.stages[stage], int8.manifest.stages[stage]
        if stage not in QUANTIZED_STAGES:
            assert after == before
            continue
        assert after.precision == "int8"
        assert after.quantization is not None
        assert after.quantization.kind == "dynamic"
        layers = find_layers(load_graph(bundle.graph_path(stage)))
        assert after.quantization.layers == len(layers)
        assert after.quantization.relative_l2 is not None
        assert 0 < after.quantization.relative_l2 < 0.05
        assert after.weight_bytes < before.weight_bytes
        operators = {node.op_type for node in onnx.load(int8.graph_path(stage)).graph.node}
        assert "MatMulInteger" in operators
        assert "LayerNormalization" in operators


def test_the_bundle_says_that_its_masks_were_not_judged(bundle: Bundle, int8: Bundle) -> None:
    assert bundle.manifest.notes == ()
    assert int8.manifest.notes == (NOT_JUDGED_NOTE,)
    assert int8.manifest.judgement is None


def test_infer_and_eval_say_so_in_one_line(int8: Bundle, exported: Exported, tmp_path: Path, capsys: Capsys) -> None:
    data = ("--data", exported.data, "--split", "val")
    image = next(exported.data.rglob("*.jpg"))
    for arguments in (("infer", image, "the red box", "--out", tmp_path), ("eval", *data)):
        on = ("--bundle", int8.root, "--backend", "onnxruntime")
        assert run_here(capsys, *arguments, *on).out.count(f"note: {NOT_JUDGED_NOTE}") == 1
        assert run_here(capsys, *arguments, *on, "--json").result["notes"] == [NOT_JUDGED_NOTE]


def test_masks_are_near_those_of_float32(bundle: Bundle, int8: Bundle) -> None:
    ious = []
    with Segmenter(int8, select_backend("onnxruntime", int8).engine) as segmenter:
        for sample in load_reference(int8):
            pixels = np.ascontiguousarray(sample.tensors["image"][0].transpose(1, 2, 0))
            for found, wanted in zip(
                segmenter.segment(pixels, sample.phrases), sample.tensors["mask_logits"], strict=True
            ):
                ious.append(mask_iou(found.mask_logits > 0, wanted[0] > 0))
    assert min(ious) > 0.9


def test_a_mask_does_not_depend_on_the_other_phrases(int8: Bundle, exported: Exported) -> None:
    """Dynamic scales follow from a whole run, so each phrase has its own."""
    sample = load_reference(int8)[0]
    pixels = np.ascontiguousarray(sample.tensors["image"][0].transpose(1, 2, 0))
    phrases = ("the red box", "white", "the green box on the left")
    with Segmenter(int8, select_backend("onnxruntime", int8).engine, cached_phrases=0) as segmenter:
        together = [one.mask_logits for one in segmenter.segment(pixels, phrases)]
        alone = [segmenter.segment(pixels, [phrase])[0].mask_logits for phrase in phrases]
    for first, second in zip(together, alone, strict=True):
        np.testing.assert_allclose(first, second, atol=1e-4 * np.abs(second).max())


def graph_of(nodes: str, shape: list[int], **weights: np.ndarray) -> onnx.ModelProto:
    graph = onnx.parser.parse_graph(f"g (float{shape} x) => (float[a, b, c] y) {{ {nodes} }}")
    for node, name in zip(graph.node, ("first/MatMul", "second/MatMul", "third/MatMul"), strict=False):
        node.name = name
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in weights.items())
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


def run(path: Path, x: np.ndarray) -> np.ndarray:
    import onnxruntime

    return np.asarray(onnxruntime.InferenceSession(str(path)).run(None, {"x": x})[0])


RANDOM = np.random.default_rng(0)
WEIGHT = RANDOM.normal(size=(32, 32)).astype(np.float32)


def test_constants_of_three_dimensions_are_no_layers(tmp_path: Path) -> None:
    """Like SAM's relative positions, which fail at run time if they are quantised per channel."""
    places = RANDOM.normal(size=(4, 32, 32)).astype(np.float32)
    model = graph_of("h = MatMul (x, w) y = MatMul (h, places)", [4, 8, 32], w=WEIGHT, places=places)
    onnx.save(model, tmp_path / "a.onnx")
    assert quantize_graph(tmp_path / "a.onnx", tmp_path / "b.onnx", DYNAMIC, frozenset(), ()) == 1
    x = RANDOM.normal(size=(4, 8, 32)).astype(np.float32)
    assert tensor_error(run(tmp_path / "a.onnx", x), run(tmp_path / "b.onnx", x)).relative_l2 < 0.03


def test_all_temporary_files_are_with_the_unfinished_bundle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the next export removes those of a killed one."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    onnx.save(graph_of("y = MatMul (x, w)", [1, 8, 32], w=WEIGHT), tmp_path / "a.onnx")
    feeds = [{"x": RANDOM.normal(size=(1, 8, 32)).astype(np.float32)}]
    for settings in (DYNAMIC, QuantizationSettings(static=True, data=Path("scenes"))):
        assert quantize_graph(tmp_path / "a.onnx", tmp_path / "b.onnx", settings, frozenset(), feeds) == 1
        assert layer_errors(tmp_path / "a.onnx", settings, feeds, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {"a.onnx", "b.onnx", "b.onnx.data"}
    assert tempfile.tempdir == str(tmp_path / "missing")


def test_weights_behind_a_shared_transpose_are_quantised(tmp_path: Path) -> None:
    """A module that is computed in parts, as SAM's MLP, shares one transposed weight."""
    nodes = "t = Transpose <perm = [1, 0]> (w) h = MatMul (x, t) y = MatMul (h, t)"
    onnx.save(graph_of(nodes, [1, 8, 32], w=WEIGHT), tmp_path / "a.onnx")
    quantize_graph(tmp_path / "a.onnx", tmp_path / "b.onnx", DYNAMIC, frozenset(), ())
    operators = [node.op_type for node in onnx.load(tmp_path / "b.onnx").graph.node]
    assert operators.count("MatMulInteger") == 2
    assert "Transpose" not in operators
    x = RANDOM.normal(size=(1, 8, 32)).astype(np.float32)
    assert tensor_error(run(tmp_path / "a.onnx", x), run(tmp_path / "b.onnx", x)).relative_l2 < 0.03


def test_a_graph_written_again_does_not_grow(bundle: Bundle, tmp_path: Path) -> None:
    """External weights are appended to a file that exists."""
    out, source = tmp_path / "a.onnx", bundle.graph_path(Stage.SIGLIP_VISION)
    sizes = []
    for _ in range(2):
        quantize_graph(source, out, DYNAMIC, frozenset(), ())
        sizes.append((tmp_path / "a.onnx.data").stat().st_size)
    assert sizes[0] == sizes[1]


def test_embedding_tables_in_half_precision_cost_little(tmp_path: Path) -> None:
    """Against the error of INT8, 1e-2: half precision rounds by at most 5e-4."""
    graph = onnx.parser.parse_graph("g (int64[n] x) => (float[n, c] y) { r = Gather (table, x) y = MatMul (r, w) }")
    graph.initializer.extend(numpy_helper.from_array(WEIGHT, name) for name in ("table", "w"))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    onnx.save(model, tmp_path / "a.onnx")
    halve_tables(model)
    onnx.save(model, tmp_path / "b.onnx")
    assert {tensor.name: tensor.data_type for tensor in model.graph.initializer} == {
        "table": onnx.TensorProto.FLOAT16,
        "w": onnx.TensorProto.FLOAT,
    }
    x = np.arange(32)
    assert 0 < tensor_error(run(tmp_path / "a.onnx", x), run(tmp_path / "b.onnx", x)).relative_l2 < 5e-4


def test_large_equal_values_do_not_overflow(tmp_path: Path) -> None:
    """On CPUs without VNNI, sums of two 8-bit products overflow 16 bits; with 7-bit weights they fit."""
    onnx.save(graph_of("y = MatMul (x, w)", [1, 8, 32], w=np.ones((32, 32), np.float32)), tmp_path / "a.onnx")
    quantize_graph(tmp_path / "a.onnx", tmp_path / "b.onnx", DYNAMIC, frozenset(), ())
    x = np.ones((1, 8, 32), np.float32)
    np.testing.assert_allclose(run(tmp_path / "b.onnx", x), 32.0, rtol=1e-3)


def test_small_weights_of_half_precision_graphs_stay_numbers_in_fp8(tmp_path: Path) -> None:
    """Their scales would be subnormal in FP16, and E4M3 has NaN where other formats have infinity."""
    weight = (WEIGHT * np.geomspace(1e-4, 1e-1, 32)).astype(np.float16)
    nodes = "a = Cast <to = 10> (x) b = MatMul (a, w) y = Cast <to = 1> (b)"
    onnx.save(graph_of(nodes, [1, 8, 32], w=weight), tmp_path / "a.onnx")
    settings = QuantizationSettings("fp8", static=True, tensorrt=True, data=Path("scenes"))
    x = RANDOM.normal(size=(1, 8, 32)).astype(np.float32)
    assert quantize_graph(tmp_path / "a.onnx", tmp_path / "b.onnx", settings, frozenset(), [{"x": x}]) == 1
    wanted, found = run(tmp_path / "a.onnx", x), run(tmp_path / "b.onnx", x)
    assert all(tensor_error(wanted[..., one], found[..., one]).relative_l2 < 0.1 for one in range(32))
    (predicted,) = layer_errors(tmp_path / "a.onnx", settings, [{"x": x}], tmp_path).values()
    assert predicted == pytest.approx(tensor_error(wanted, found).relative_l2, rel=0.1)


@pytest.mark.parametrize(
    ("options", "hint"),
    [
        ({"int8": True, "fp8": True}, "contradict"),
        ({"fp8": True}, "--fp16"),
        ({"int8": True, "fp16": True, "target": Target.ONNXRUNTIME}, "fp16"),
        ({"int8": True, "target": Target.OPENVINO}, "--data"),
        ({"int8": True, "min_iou": 0.9}, "--data"),
        ({"int8": True, "max_giou_drop": 0.1}, "--max-giou-drop .* --data"),
        ({"int8": True, "split": "train"}, "--split .* --data"),
        ({"int8": True, "images": Path("scenes")}, "--images .* --data"),
        ({"fp8": True, "fp16": True, "target": Target.OPENVINO}, "--fp8 .* tensorrt"),
        ({"fp8": True, "fp16": True, "target": Target.ONNXRUNTIME_CUDA}, "--fp8 .* tensorrt"),
        ({"data": Path("scenes")}, "--int8"),
    ],
)
def test_options_that_contradict_are_refused(options: dict[str, object], hint: str) -> None:
    given = {"int8": False, "fp8": False, "fp16": False, "target": None} | options
    choose: Callable[..., object] = choose_quantization
    with pytest.raises(BadInputError, match=hint):
        choose(**given)


@pytest.mark.parametrize("backend", ["onnxruntime", "openvino-fp32"])
def test_calibrated_graphs_run_on_both_cpu_runtimes(
    bundle: Bundle, exported: Exported, tmp_path: Path, backend: str
) -> None:
    made = quantized(bundle, tmp_path / "out", static(exported))
    with select_backend(backend, made).engine as engine:
        for sample in load_reference(made):
            for stage in QUANTIZED_STAGES:
                contract = engine.contract(stage)
                found, wanted = engine.run(stage, sample.inputs(contract)), sample.outputs(contract)
                assert engine.precision_of(stage) == "int8"
                assert all(tensor_error(wanted[name], found[name]).relative_l2 < 0.05 for name in wanted)


def test_fp8_is_refused_for_gpus_without_it(half_bundle: Bundle, exported: Exported, tmp_path: Path) -> None:
    made = quantized(half_bundle, tmp_path / "out", static(exported, tensorrt=True, precision="fp8"))
    failure = check_compilation(made, (Stage.SIGLIP_VISION,), ("sm86",)).failure
    assert failure is not None
    assert "fp8" in failure
    assert default_gpus(made) == ("sm89",)
