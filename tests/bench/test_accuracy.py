"""Accuracy: which model, which phrases, which protocol, and one scoring rule for every predictor."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from rsrefseg.bench.accuracy.accuracy import run_evaluation
from rsrefseg.bench.accuracy.report import EvaluationReport, EvaluationRequest
from rsrefseg.checkpoints.model_file import load_tensors, save_tensors
from rsrefseg.data.formats import open_dataset
from rsrefseg.data.samples import Sample
from rsrefseg.engines.errors import BadInputError, BundleError
from rsrefseg.engines.images.images import read_image
from rsrefseg.engines.system.files import sha256_file
from rsrefseg.evaluation.answers import Ask, answer_samples, score
from rsrefseg.evaluation.metrics import Protocol
from rsrefseg.evaluation.models import run_model
from tests.support.commands import run_alone
from tests.support.exported import Exported
from tests.support.printing import printed


@dataclass(frozen=True)
class Known:
    mask: np.ndarray

    @property
    def mask_logits(self) -> np.ndarray:
        return np.where(self.mask, 1, -1).astype(np.float32)


def truth_of(samples: Sequence[Sample], asked: list[int]) -> Ask:
    """A predictor that gives the truth, found by the image's own pixels, and notes how many phrases it was given."""
    truths = {(read_image(sample.image_path).tobytes(), sample.phrase): sample.mask() for sample in samples}

    def ask(image: np.ndarray, phrases: Sequence[str]) -> Sequence[Known]:
        asked.append(len(phrases))
        return [Known(truths[image.tobytes(), phrase]) for phrase in phrases]

    return ask


def evaluate(data: Path, split: str = "val", **options: Any) -> EvaluationReport:
    return run_evaluation(EvaluationRequest(data, split, **options))


def test_the_truth_scores_1_the_other_object_0_and_an_image_is_asked_once(boxes: Path) -> None:
    samples = open_dataset(boxes).split("val")
    asked: list[int] = []
    done: list[tuple[int, int]] = []
    ask = truth_of(samples, asked)
    answers = list(answer_samples(ask, samples, progress=lambda now, total: done.append((now, total))))
    assert [answer.sample for answer in answers] == list(samples)
    assert (asked, done) == ([2, 2], [(1, 2), (2, 2)])
    assert score(answers).gIoU == 1.0
    shuffled = list(answer_samples(ask, samples, shuffle_phrases=True))  # the two boxes of an image never overlap
    assert (score(shuffled).gIoU, len(shuffled)) == (0.0, len(samples))
    for alone in (samples[:1], [samples[0], samples[0]]):
        with pytest.raises(BadInputError, match="nothing to score"):
            score(answer_samples(ask, alone, shuffle_phrases=True))


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


def test_a_run_is_evaluated_merged_or_not_and_never_by_a_merge_that_is_out_of_date(
    exported: Exported, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(exported.run, tmp_path / "run"))
    merged = run_model(run)
    assert merged.source.endswith(", merged")
    (run / "merged.safetensors").rename(tmp_path / "merged.safetensors")
    folded = run_model(run)
    assert folded.source == f"run {run}"
    weights = folded.model.state_dict()
    assert all(np.allclose(weights[name], value) for name, value in merged.model.state_dict().items())
    # Training continued: another best.safetensors than the merge was made of.
    best = load_tensors(run / "best.safetensors")
    save_tensors(run / "best.safetensors", best.tensors, {**best.header, "step": best.header["step"] + 1})
    (tmp_path / "merged.safetensors").rename(run / "merged.safetensors")
    assert run_model(run).source == f"run {run}"


def test_run_and_model_file_name_the_file_they_were_read_from(exported: Exported, tmp_path: Path) -> None:
    merged = exported.run / "merged.safetensors"
    by_run, by_file = evaluate(exported.data, run=exported.run), evaluate(exported.data, run=merged)
    assert by_run.predictor.model_sha256 == by_file.predictor.model_sha256 == sha256_file(merged)
    assert by_run.metrics == by_file.metrics
    assert by_file.predictor.name == f"model {merged}"
    unmerged = Path(shutil.copytree(exported.run, tmp_path / "run"))
    (unmerged / "merged.safetensors").unlink()
    folded = evaluate(exported.data, run=unmerged)
    assert folded.predictor.model_sha256 == sha256_file(unmerged / "best.safetensors")
    assert folded.predictor.bundle_sha256 is None


@pytest.mark.parametrize(
    ("options", "error", "fact"),
    [
        ({"run": "{run}", "base": True}, BadInputError, "different models"),
        ({"run": "{run}", "backend": "auto"}, BadInputError, "different models"),
        ({"bundle": "{bundle}", "base": True}, BadInputError, "different models"),
        ({"protocol": "coco"}, BadInputError, "coco"),
        ({"backend": "tpu"}, BadInputError, "tpu"),
        ({"run": "{run}", "split": "test"}, BadInputError, "'test'"),
        ({"run": "{data}"}, BadInputError, "{data}"),
        ({"bundle": "none"}, BundleError, "none"),
        ({"run": "{run}", "worst_cases": "worst.jpg"}, BadInputError, r"end it with \.png"),
    ],
)
def test_what_cannot_be_evaluated_is_refused(
    options: dict[str, Any], error: type[Exception], fact: str, exported: Exported
) -> None:
    given = {
        name: Path(value.format_map(vars(exported))) if name in ("run", "bundle", "worst_cases") else value
        for name, value in options.items()
    }
    with pytest.raises(error, match=fact.format_map(vars(exported))):
        evaluate(exported.data, **given)


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
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from rsrefseg.bench.accuracy.accuracy import run_evaluation\n"
        "from rsrefseg.bench.accuracy.report import EvaluationRequest\n"
        "data, bundle = map(Path, sys.argv[1:])\n"
        "print(run_evaluation(EvaluationRequest(data, 'val', bundle=bundle)).metrics.samples)\n"
    )
    done = run_alone(exported.data, exported.bundle, script=code)
    assert done.stdout.strip() == "4", done.stderr
