"""The gate: masks of a quantised bundle are judged, and sensitive layers restored until the limits hold."""

from dataclasses import replace
from pathlib import Path

import msgspec
import onnx
import pytest
from onnx import numpy_helper
from PIL import Image

from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.errors import CheckFailedError
from rsrefseg.export.quantization.judge import choose_samples, fewest, stage_feeds
from rsrefseg.export.quantization.layers import find_layers, load_graph
from rsrefseg.export.quantization.quantize import _Quantization
from rsrefseg.export.quantization.settings import QUANTIZED_STAGES, QuantizationSettings
from tests.support.exported import Exported, changed_bundle
from tests.support.quantized import DYNAMIC, quantized


def with_outliers(bundle: Bundle, folder: Path) -> tuple[Bundle, list[str]]:
    """Scale a channel of SAM's layer norms up and the weights that read it down: the same function, bad to quantise.

    Returns:
        The changed bundle, and the layers that read such a channel.
    """
    planted: list[str] = []

    def plant(graph: onnx.GraphProto) -> None:
        tensors = {tensor.name: tensor for tensor in graph.initializer}

        def scale(name: str, factor: float) -> None:
            value = numpy_helper.to_array(tensors[name]).copy()
            value[3] *= factor
            tensors[name].CopyFrom(numpy_helper.from_array(value, name))

        for norm in [node for node in graph.node if node.op_type == "LayerNormalization" and "norm1" in node.name]:
            for name in norm.input[1:]:
                scale(name, 3000.0)
            for node in graph.node:
                if node.op_type == "MatMul" and node.input[0] == norm.output[0]:
                    scale(node.input[1], 1 / 3000)
                    planted.append(node.name.partition("/")[0])

    return Bundle.open(changed_bundle(bundle.root, folder, Stage.SAM_ENCODER, plant)), planted


def test_the_gate_restores_layers_with_outliers(bundle: Bundle, exported: Exported, tmp_path: Path) -> None:
    original, planted = with_outliers(bundle, tmp_path / "original")
    assert len(planted) == 6  # query, key and value of both blocks
    naive = quantized(original, tmp_path / "naive").manifest.stages[Stage.SAM_ENCODER].quantization
    assert naive is not None
    assert naive.relative_l2 is not None
    assert naive.relative_l2 > 0.05, "the outliers do no harm"
    settings = QuantizationSettings(data=exported.data, split="train", min_iou=0.9)
    gated = quantized(original, tmp_path / "gated", settings).manifest
    judgement, found = gated.judgement, gated.stages[Stage.SAM_ENCODER].quantization
    assert judgement is not None
    assert judgement.holds
    assert judgement.min_iou_mean == 0.98
    assert judgement.data == exported.data.name  # no path of this machine
    changed = msgspec.structs.replace(judgement, iou_mean=0.97)
    assert not changed.holds, "equal gIoU with other masks"
    assert 1 < judgement.evaluations <= 12
    assert found is not None
    assert {part.module for part in found.kept[: len(planted)]} == set(planted), "others were restored before them"
    assert all(part.reason for part in found.kept)
    assert gated.notes == ()


def test_limits_that_nothing_meets_are_refused(bundle: Bundle, exported: Exported, tmp_path: Path) -> None:
    settings = QuantizationSettings(data=exported.data, split="train", max_giou_drop=-1.0)
    original, _ = with_outliers(bundle, tmp_path / "original")
    with pytest.raises(CheckFailedError, match=r"with 24 of 25 layers restored .* --max-giou-drop.* without --int8"):
        quantized(original, tmp_path / "out", settings)


def test_strict_limits_restore_most_layers(bundle: Bundle, exported: Exported, tmp_path: Path) -> None:
    original, _ = with_outliers(bundle, tmp_path / "original")
    settings = QuantizationSettings(data=exported.data, split="train", min_iou=1.0)
    made = quantized(original, tmp_path / "gated", settings).manifest
    assert made.judgement is not None
    assert made.judgement.holds
    assert made.judgement.iou_worst == 1.0
    assert made.judgement.evaluations <= 12
    records = [record.quantization for stage in QUANTIZED_STAGES if (record := made.stages[stage]).quantization]
    assert sum(len(record.kept) for record in records if record) > 12 > sum(one.layers for one in records if one) > 0


def test_a_stage_whose_layers_are_all_restored_is_the_original(bundle: Bundle, tmp_path: Path) -> None:
    """Its embedding table as well, so that the tolerances of FP32 hold."""
    source = bundle.manifest.stages[Stage.SIGLIP_TEXT]
    quantization = _Quantization(bundle, tmp_path, DYNAMIC, lambda line: None)
    assert quantization._write_stage(Stage.SIGLIP_TEXT, {}).graph != source.graph
    layers = find_layers(load_graph(bundle.graph_path(Stage.SIGLIP_TEXT)))
    restored = quantization._write_stage(Stage.SIGLIP_TEXT, dict.fromkeys(layers, "sensitive"))
    assert msgspec.structs.replace(restored, quantization=None) == source
    files = [record.name for record in (source.graph, *source.data)]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(files)
    assert all((tmp_path / name).read_bytes() == (bundle.root / name).read_bytes() for name in files)


def test_calibration_and_judgement_share_no_image(exported: Exported) -> None:
    samples = choose_samples(QuantizationSettings(data=exported.data, split="train"))
    images = [{sample.image_path for sample in part} for part in samples]
    assert all(images)
    assert not images[0] & images[1]


def test_calibration_images_are_padded_where_the_model_pads(bundle: Bundle, exported: Exported, tmp_path: Path) -> None:
    Image.new("RGB", (64, 16), "white").save(tmp_path / "wide.png")
    (sample, *_), _ = choose_samples(QuantizationSettings(data=exported.data, split="train"))
    preprocessing = msgspec.structs.replace(bundle.manifest.preprocessing, keep_aspect=True)
    padding = Bundle(bundle.root, msgspec.structs.replace(bundle.manifest, preprocessing=preprocessing))
    feeds = stage_feeds(padding, [replace(sample, image_path=tmp_path / "wide.png")])
    image = feeds[Stage.SAM_ENCODER][0]["image"][0, 0]
    assert image[0].all()
    assert not image[-1].any()


@pytest.mark.parametrize("needed", [0, 1, 2, 3, 7, 40, 100, 300, 365, 371, 372])
def test_few_trials_find_a_number(needed: int) -> None:
    trials: list[int] = []

    def holds(count: int) -> bool:
        trials.append(count)
        return count >= needed

    found = fewest(372, holds)
    assert needed <= found <= needed + 3
    assert found == 372 or found in trials
    assert len(trials) <= 12
