"""Accuracy: models, phrases, protocols, equal scoring of all predictors, and published rows."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rsrefseg.bench.accuracy.accuracy import run_evaluation
from rsrefseg.bench.accuracy.predictors import Predictor
from rsrefseg.bench.accuracy.published import ROWS, SPLIT_SAMPLES, PublishedContext, published_context
from rsrefseg.bench.accuracy.report import EvaluationReport, EvaluationRequest
from rsrefseg.checkpoints.model_file import load_tensors, save_tensors
from rsrefseg.data.formats import open_dataset
from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.images.images import read_image
from rsrefseg.engines.system.files import sha256_file
from rsrefseg.evaluation.metrics import PRECISION_THRESHOLDS, MetricsResult, Protocol
from rsrefseg.evaluation.models import run_model
from rsrefseg.evaluation.predictions import predict_samples, score
from tests.support.commands import ENTRY, run_alone
from tests.support.exported import Exported
from tests.support.printing import printed


def evaluate(data: Path, split: str = "val", **options: Any) -> EvaluationReport:
    return run_evaluation(EvaluationRequest(data, split, **options))


def test_the_truth_scores_1_the_other_object_0_and_an_image_is_encoded_once(boxes: Path) -> None:
    samples = open_dataset(boxes).split("val")
    truths = {(read_image(sample.image_path).tobytes(), sample.phrase): sample.mask() for sample in samples}
    calls: list[int] = []
    done: list[tuple[int, int]] = []

    def predict(image: np.ndarray, phrases: Sequence[str]) -> list[SimpleNamespace]:
        calls.append(len(phrases))
        return [SimpleNamespace(mask=truths[image.tobytes(), phrase], mask_logits=None) for phrase in phrases]

    predictions = list(predict_samples(predict, samples, progress=lambda now, total: done.append((now, total))))
    assert [prediction.sample for prediction in predictions] == list(samples)
    assert (calls, done) == ([2, 2], [(1, 2), (2, 2)])
    assert score(predictions).gIoU == 1.0
    shuffled = list(predict_samples(predict, samples, shuffle_phrases=True))  # the two boxes of an image never overlap
    assert (score(shuffled).gIoU, len(shuffled)) == (0.0, len(samples))
    for alone in (samples[:1], [samples[0], samples[0]]):
        with pytest.raises(BadInputError, match="nothing to score"):
            score(predict_samples(predict, alone, shuffle_phrases=True))


def test_pixels_without_data_are_never_part_of_a_scored_mask(boxes: Path, tmp_path: Path) -> None:
    (sample, *_) = open_dataset(boxes).split("val")
    pixels = np.dstack([read_image(sample.image_path), np.full(sample.mask_size, 255, np.uint8)])
    pixels[:4, :, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "clear.png")

    def predict(image: np.ndarray, phrases: Sequence[str]) -> list[SimpleNamespace]:
        return [SimpleNamespace(mask=np.ones(image.shape[:2], np.bool_), mask_logits=None) for _ in phrases]

    (found,) = predict_samples(predict, [replace(sample, image_path=tmp_path / "clear.png")])
    assert not found.mask[:4].any()
    assert found.mask[4:].all()


@pytest.mark.parametrize("protocol", Protocol)
def test_a_bundle_scores_what_its_run_scores(exported: Exported, protocol: Protocol) -> None:
    by_torch = evaluate(exported.data, protocol=protocol, run=exported.run)
    by_engine = evaluate(exported.data, protocol=protocol, bundle=exported.bundle)
    assert by_torch.metrics.gIoU > 0.05
    assert by_engine.metrics.gIoU == pytest.approx(by_torch.metrics.gIoU, abs=0.0005)
    assert (by_torch.predictor.runtime, by_engine.predictor.runtime) == ("torch", "onnxruntime")
    for report in (by_torch, by_engine):
        document = json.loads(json.dumps(report.to_dict()))
        assert (document["protocol"], document["samples"], document["phrases"]) == (protocol, 4, "own")
        assert {"gIoU", "cIoU", "Pr@0.5", "Pr@0.6", "Pr@0.7", "Pr@0.8", "Pr@0.9"} <= set(document)
        assert list(document["per_class"]) == ["box"]
        text = printed(report, width=80)
        assert f"protocol {protocol}" in " ".join(text.split())
        assert f"{report.metrics.gIoU:.4f}" in text


def test_a_run_is_evaluated_merged_or_not_and_never_by_a_stale_merge(exported: Exported, tmp_path: Path) -> None:
    run = Path(shutil.copytree(exported.run, tmp_path / "run"))
    merged, best, aside = run / "merged.safetensors", run / "best.safetensors", tmp_path / "aside"
    by_run, by_file = evaluate(exported.data, run=run), evaluate(exported.data, run=merged)
    assert by_run.predictor.name.endswith(", merged")
    assert by_file.predictor.name == f"model {merged}"
    assert by_run.predictor.model_sha256 == by_file.predictor.model_sha256 == sha256_file(merged)
    assert by_run.metrics == by_file.metrics
    weights = run_model(run).model.state_dict()
    merged.rename(aside)
    folded = evaluate(exported.data, run=run)
    assert folded.predictor[1:] == (f"run {run}", "torch", sha256_file(best), None, ())
    folded_weights = run_model(run).model.state_dict()
    assert all(np.allclose(folded_weights[name], value) for name, value in weights.items())
    # Training continued: another best.safetensors than the merge was made of.
    content = load_tensors(best)
    save_tensors(best, content.tensors, {**content.header, "step": content.header["step"] + 1})
    aside.rename(merged)
    assert run_model(run).source == f"run {run}"


def test_masks_of_another_size_are_refused_or_counted(exported: Exported, tmp_path: Path) -> None:
    data = Path(shutil.copytree(exported.data, tmp_path / "boxes"))
    path = open_dataset(data).split("val")[0].image_path
    with Image.open(path) as image:
        image.resize((40, 40)).save(path)
    with pytest.raises(BadInputError, match="--resize-masks"):
        evaluate(data, run=exported.run)
    report = evaluate(data, run=exported.run, resize_masks=True)
    assert report.resized_masks == 2
    assert "2 masks were resized" in printed(report)


def test_a_bundle_is_evaluated_without_pytorch(exported: Exported) -> None:
    options = ("--data", exported.data, "--split", "val", "--bundle", exported.bundle)
    done = run_alone("eval", *options, "--json", script=f"import sys; sys.modules['torch'] = None; {ENTRY}")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["samples"] == 4


# Published rows


def context(**changes: Any) -> PublishedContext:
    real = {"data_format": "RRSIS-D", "split": "test", "samples": SPLIT_SAMPLES}
    return published_context(**({"protocol": "rsrefseg", "shuffled": False} | real | changes))


def reported(published: PublishedContext) -> EvaluationReport:
    precision = dict.fromkeys(PRECISION_THRESHOLDS, 0.25)
    return EvaluationReport(
        request=EvaluationRequest(Path("rrsis-d")),
        predictor=Predictor(lambda image, phrases: [], "run runs/001", "torch", "0" * 64),
        data_format="RRSIS-D",
        resized_masks=0,
        metrics=MetricsResult(Protocol.RSREFSEG, SPLIT_SAMPLES, 0.5, 0.75, precision, {}),
        published=published,
    )


def test_the_real_test_split_has_them_beside_the_measured_row() -> None:
    text = printed(reported(context()))
    assert text.index("measured here") < text.index("published: LAVT") < text.index("published: RSRefSeg-b")
    line = next(line for line in text.splitlines() if "RSRefSeg-b" in line)
    assert line.split()[2:] == ["-", "0.7605", "0.7282", "0.6735", "0.5666", "0.4586", "0.2678"]
    assert "arXiv 2501.06809" in text
    assert any("rmsin" in caution for caution in context(protocol="rmsin").cautions)
    assert not any("rmsin" in caution for caution in context().cautions)


def test_json_keeps_them_apart_from_what_was_measured() -> None:
    document = json.loads(json.dumps(reported(context()).to_dict()))
    assert (document["gIoU"], document["cIoU"]) == (0.5, 0.75)
    published = document.pop("published")
    assert published["split"] == "test of RRSIS-D"
    assert published["rows"] == ROWS
    bare = reported(PublishedContext(reason="x")).to_dict()
    nothing = bare.pop("published")
    assert (nothing["rows"], nothing["reason"]) == ({}, "x")
    assert bare == document


@pytest.mark.parametrize(
    ("changes", "fact"),
    [
        ({"data_format": "JSONL"}, "JSONL"),
        ({"split": "val"}, "not 'val'"),
        ({"samples": 469}, "469"),
        ({"shuffled": True}, "shuffled"),
    ],
)
def test_published_rows_are_omitted_with_a_reason(changes: dict, fact: str) -> None:
    found = context(**changes)
    assert found.rows == {}
    assert fact in found.reason
    text = " ".join(printed(reported(found)).split())
    assert found.reason in text
    assert "RSRefSeg-b" not in text
