"""Outputs of an evaluation: predictions that open as a data set, and the sheet of worst cases."""

import json
import shutil
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rsrefseg.bench.accuracy.accuracy import run_evaluation
from rsrefseg.bench.accuracy.predictions import prediction_folder
from rsrefseg.bench.accuracy.report import EvaluationRequest
from rsrefseg.bench.accuracy.worst_cases import WorstCases, contact_sheet
from rsrefseg.data.formats import open_dataset
from rsrefseg.data.masks import decode_rle, encode_mask
from rsrefseg.data.samples import Sample
from rsrefseg.engines.errors import BadInputError, RSRefSegError
from rsrefseg.engines.system.files import sha256_file
from rsrefseg.evaluation.metrics import Overlap, Protocol
from rsrefseg.evaluation.predictions import SamplePrediction
from tests.support.exported import Exported
from tests.support.small import SIZE


@pytest.fixture(scope="module")
def document(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """Return the report of an evaluation that writes all outputs."""
    out = tmp_path_factory.mktemp("evaluated")
    places = {"save_predictions": out / "predictions", "worst_cases": out / "new" / "worst.png"}
    report = run_evaluation(EvaluationRequest(exported.data, "val", bundle=exported.bundle, **places))
    return json.loads(json.dumps(report.to_dict()))


@pytest.fixture
def predictions(document: dict) -> Path:
    return Path(document["predictions"])


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]


def made_prediction(
    image: Path, truth: np.ndarray, mask: np.ndarray, phrase: str = "the box", name: str = "1"
) -> tuple[SamplePrediction, Overlap]:
    sample = Sample(name, "val", image, phrase, "box", encode_mask(truth), has_target=bool(truth.any()))
    logits = np.zeros((4, 4), np.float32)
    return SamplePrediction(sample, phrase, logits, mask, truth, False), Protocol.RSREFSEG.overlap(mask, truth)


def box(left: int, right: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    mask = np.zeros(size, np.bool_)
    mask[4:20, left:right] = True
    return mask


# Predictions


def test_every_sample_has_a_mask_and_a_line(document: dict, predictions: Path, exported: Exported) -> None:
    samples = open_dataset(exported.data).split("val")
    found = lines(predictions)
    assert [line["sample_id"] for line in found] == [sample.sample_id for sample in samples]
    for line, sample in zip(found, samples, strict=True):
        with Image.open(predictions / line["mask_file"]) as image:
            assert (image.mode, image.size) == ("L", SIZE[::-1])
            pixels = np.array(image)
        assert set(np.unique(pixels)) <= {0, 255}
        prediction = pixels > 0
        np.testing.assert_array_equal(decode_rle(line["segmentation"][0]), prediction)
        overlap = Protocol.RSREFSEG.overlap(prediction, sample.mask())
        assert (line["iou"], line["intersection"], line["union"]) == (overlap.iou, overlap.intersection, overlap.union)
        assert (line["sent"], line["category_name"], line["split"]) == (sample.phrase, "box", "val")
    assert np.mean([line["iou"] for line in found]) == pytest.approx(document["gIoU"])


def test_predictions_have_a_record_and_are_a_data_set(document: dict, predictions: Path, exported: Exported) -> None:
    record = json.loads((predictions / "evaluation.json").read_text(encoding="utf-8"))
    assert (record["protocol"], record["runtime"], record["split"]) == ("rsrefseg", "onnxruntime", "val")
    assert record["model_sha256"] == sha256_file(exported.run / "merged.safetensors")
    assert len(record["bundle_sha256"]) == 64
    assert record["gIoU"] == document["gIoU"]
    assert {path.name for path in predictions.iterdir()} == {"evaluation.json", "predictions.jsonl", "masks"}
    predicted, images = predictions / "predictions.jsonl", Path(record["images"])
    again = run_evaluation(EvaluationRequest(predicted, "val", run=exported.run, images=images))
    # The model agrees with what it predicted itself; torch and ONNX Runtime may differ in a pixel.
    assert again.metrics.gIoU > 0.99
    assert again.data_format == "JSONL"


def test_earlier_predictions_are_replaced_by_new_ones(exported: Exported, predictions: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(predictions, tmp_path / "p"))
    (folder / "masks" / "999999.png").write_text("left over")
    options = {"bundle": exported.bundle, "shuffle_phrases": True, "save_predictions": folder}
    assert run_evaluation(EvaluationRequest(exported.data, "val", **options)).to_dict()["phrases"] == "shuffled"
    assert len(list((folder / "masks").iterdir())) == 4
    own = {sample.sample_id: sample.phrase for sample in open_dataset(exported.data).split("val")}
    for line in lines(folder):
        assert line["own_sent"] == own[line["sample_id"]]
        assert line["sent"] != line["own_sent"]
        assert line["sent"] in own.values()


def test_other_files_and_folders_are_never_replaced(exported: Exported, tmp_path: Path) -> None:
    (tmp_path / "mine.png").mkdir()
    (tmp_path / "mine.png" / "thesis.txt").write_text("years of work")
    (tmp_path / "file").write_text("a file")
    for option, name in (
        ("save_predictions", "mine.png"),
        ("save_predictions", "file"),
        ("worst_cases", "mine.png"),
        ("worst_cases", "file/worst.png"),
    ):
        with pytest.raises(RSRefSegError, match=name):
            run_evaluation(EvaluationRequest(exported.data, "val", run=exported.run, **{option: tmp_path / name}))
    assert (tmp_path / "mine.png" / "thesis.txt").read_text() == "years of work"


def test_an_evaluation_that_fails_leaves_nothing(exported: Exported, tmp_path: Path) -> None:
    data, out = Path(shutil.copytree(exported.data, tmp_path / "boxes")), tmp_path / "out"
    image = open_dataset(data).split("val")[-1].image_path
    image.write_bytes(image.read_bytes()[:-200])  # its header is whole: found when it is read
    options = {"save_predictions": out / "p", "worst_cases": out / "worst.png"}
    with pytest.raises(BadInputError, match=image.name):
        run_evaluation(EvaluationRequest(data, "val", bundle=exported.bundle, **options))
    assert list(out.iterdir()) == []


def test_memory_does_not_grow_with_the_predictions(tmp_path: Path) -> None:
    """Masks of 250 kB are not kept, the worst ones are run lengths. Phrases may have any bytes."""
    size, phrase = (500, 500), "ein Würfel \udce9 左"
    prediction, overlap = made_prediction(tmp_path / "a.png", box(3, 40, size), box(20, 90, size), phrase)
    worst = WorstCases()
    peaks = []
    with prediction_folder(tmp_path / "p", [prediction.sample]) as folder:
        for rounds in (13, 40):
            tracemalloc.start()
            for _ in range(rounds):
                fresh = replace(prediction, mask=prediction.mask.copy())
                folder.add(fresh, overlap)
                worst.add(fresh, overlap)
            peaks.append(tracemalloc.get_traced_memory()[1])
            tracemalloc.stop()
        folder.finish({})
    assert peaks[1] < peaks[0] + (200 << 10)
    assert [line["sent"] for line in lines(tmp_path / "p")] == [phrase] * 53


# Worst cases


def test_the_worst_come_first_and_no_more_than_the_limit(tmp_path: Path) -> None:
    worst = WorstCases(limit=3)
    boxes = [box(shift, shift + 20) for shift in (8, 0, 30, 2, 25, 4)]
    for number, prediction in enumerate([*boxes, box(21, 56)]):
        worst.add(*made_prediction(tmp_path / "a.png", box(0, 20), prediction, name=str(number)))
    # No overlap at all: those with more wrong pixels first, then those that came first.
    assert [case.sample.sample_id for case in worst.cases] == ["6", "2", "4"]
    assert [case.overlap.iou for case in worst.cases] == [0.0, 0.0, 0.0]


def drawn(sheet: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    """Return whether the image on a sheet with one case has pixels of a colour."""
    return np.abs(sheet[-500:].astype(int) - colour).max(axis=2) < 12


def test_a_sheet_shows_truth_and_prediction_in_two_colours_and_a_region_of_one_pixel(tmp_path: Path) -> None:
    size = (2000, 2000)
    Image.new("RGB", size, (60, 60, 60)).save(tmp_path / "a.png")
    truth, prediction = np.zeros(size, np.bool_), np.zeros(size, np.bool_)
    truth[1001, 501] = True
    prediction[200:900, 1100:1900] = True
    worst = WorstCases()
    worst.add(*made_prediction(tmp_path / "a.png", truth, prediction))
    sheet = contact_sheet(worst.cases, "a model on data")
    assert drawn(sheet, (240, 228, 66)).sum() > 50, "a ring shows where it is"
    assert np.flatnonzero(drawn(sheet, (86, 180, 233)).any(axis=0)).size > 50


@pytest.mark.parametrize("phrase", ["the box " * 60, "x" * 400, "ein Würfel, 左边的船 🚢 \udce9 a\nb\tc\x1b[31m"])
@pytest.mark.parametrize("size", [(900, 30), (1, 1), (30, 900)])
def test_a_sheet_takes_any_phrase_and_any_shape(phrase: str, size: tuple[int, int], tmp_path: Path) -> None:
    Image.new("RGB", size[::-1]).save(tmp_path / "a.png")
    worst = WorstCases()
    truth, prediction = np.zeros(size, np.bool_), np.ones(size, np.bool_)
    worst.add(*made_prediction(tmp_path / "a.png", truth, prediction, phrase))
    worst.add(*made_prediction(tmp_path / "a.png", prediction, truth, phrase, name="n" * 300))
    sheet = contact_sheet(worst.cases, phrase)
    for edge in (sheet[-10:], sheet[:, -10:]):
        assert (edge == sheet[0, 0]).all(), "something is cut at the lower or right edge"


def test_the_report_lists_the_worst_cases_in_full(document: dict, predictions: Path) -> None:
    worst = document["worst_cases"]
    assert [case["iou"] for case in worst["samples"]] == sorted(line["iou"] for line in lines(predictions))
    assert {"sample_id", "image", "phrase", "class", "iou"} == set(worst["samples"][0])
    with Image.open(worst["file"]) as sheet:
        assert (Path(sheet.filename).name, sheet.format, sheet.size[0]) == ("worst.png", "PNG", 4 * 420 + 20)
