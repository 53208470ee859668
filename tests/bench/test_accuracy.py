"""Accuracy: who is evaluated, on which phrases, under which protocol, and that everybody is scored by one rule."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from rsrefseg.bench.accuracy.accuracy import EvaluationRequest, run_evaluation
from rsrefseg.data.samples import Sample, open_dataset
from rsrefseg.engines.errors import BadInputError, BundleError
from rsrefseg.engines.images.images import read_image
from rsrefseg.evaluation.answers import Ask, answer_samples, score
from rsrefseg.evaluation.metrics import Protocol
from rsrefseg.evaluation.models import run_model
from tests.support.exported import Exported
from tests.support.printing import printed


@dataclass(frozen=True)
class Known:
    mask: np.ndarray

    @property
    def mask_logits(self) -> np.ndarray:
        return np.where(self.mask, 1, -1).astype(np.float32)


def knows_all(samples: Sequence[Sample]) -> Ask:
    """Answers every phrase with the truth, found by the picture's own pixels."""
    truths = {(read_image(sample.image_path).tobytes(), sample.phrase): sample.mask() for sample in samples}
    return lambda image, phrases: [Known(truths[image.tobytes(), phrase]) for phrase in phrases]


@pytest.fixture(scope="module")
def samples(boxes: Path) -> tuple[Sample, ...]:
    return open_dataset(boxes).split("val")


def test_whoever_knows_the_truth_scores_1_and_0_when_asked_for_the_neighbour(samples: tuple[Sample, ...]) -> None:
    ask = knows_all(samples)
    assert score(answer_samples(ask, samples)).gIoU == 1.0
    # The two boxes of a picture never overlap.
    shuffled = list(answer_samples(ask, samples, shuffle_phrases=True))
    assert score(shuffled).gIoU == 0.0
    assert len(shuffled) == len(samples)


def test_shuffling_needs_another_object_in_the_picture(samples: tuple[Sample, ...]) -> None:
    alone = samples[:1]
    assert list(answer_samples(knows_all(samples), alone, shuffle_phrases=True)) == []
    twins = [samples[0], samples[0]]
    assert list(answer_samples(knows_all(samples), twins, shuffle_phrases=True)) == []
    with pytest.raises(BadInputError, match="nothing to score"):
        score(answer_samples(knows_all(samples), alone, shuffle_phrases=True))


def test_a_picture_is_asked_once_for_all_of_its_phrases(samples: tuple[Sample, ...]) -> None:
    asked: list[int] = []
    truth = knows_all(samples)

    def ask(image: np.ndarray, phrases: Sequence[str]) -> Sequence[Known]:
        asked.append(len(phrases))
        return [Known(reply.mask) for reply in truth(image, phrases)]

    done: list[tuple[int, int]] = []
    answers = list(answer_samples(ask, samples, progress=lambda now, total: done.append((now, total))))
    assert [answer.sample for answer in answers] == list(samples)
    assert asked == [2, 2]
    assert done == [(1, 2), (2, 2)]


@pytest.mark.parametrize("protocol", Protocol)
def test_a_bundle_scores_what_its_run_scores(exported: Exported, protocol: Protocol) -> None:
    common = {"data": exported.data, "split": "val", "protocol": protocol}
    by_torch = run_evaluation(EvaluationRequest(run=exported.run, **common))
    by_engine = run_evaluation(EvaluationRequest(bundle=exported.bundle, **common))
    assert by_torch.metrics.gIoU > 0.05
    assert by_engine.metrics.gIoU == pytest.approx(by_torch.metrics.gIoU, abs=0.0005)
    assert (by_torch.runtime, by_engine.runtime) == ("torch", "onnxruntime")
    for report in (by_torch, by_engine):
        document = json.loads(json.dumps(report.as_dict()))
        assert document["protocol"] == protocol
        assert document["samples"] == 4
        assert {"gIoU", "cIoU", "Pr@0.5", "Pr@0.6", "Pr@0.7", "Pr@0.8", "Pr@0.9"} <= set(document)
        assert list(document["per_class"]) == ["box"]
        text = printed(report, width=80)
        assert f"protocol {protocol}" in " ".join(text.split())
        assert f"{report.metrics.gIoU:.4f}" in text


def test_shuffled_phrases_are_said_in_the_report(exported: Exported) -> None:
    request = EvaluationRequest(exported.data, "val", run=exported.run, shuffle_phrases=True)
    report = run_evaluation(request)
    assert report.as_dict()["phrases"] == "shuffled"
    assert "another phrase of its image" in " ".join(printed(report).split())
    own = run_evaluation(EvaluationRequest(exported.data, "val", run=exported.run))
    assert own.as_dict()["phrases"] == "own"


def test_a_run_is_evaluated_merged_or_not_and_never_by_a_merge_that_is_out_of_date(
    exported: Exported, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    shutil.copytree(exported.run, run)
    merged = run_model(run)
    assert merged.source.endswith(", merged")
    (run / "merged.safetensors").rename(tmp_path / "merged.safetensors")
    folded = run_model(run)
    assert folded.source == f"run {run}"
    weights = folded.model.state_dict()
    assert all(np.allclose(weights[name], value) for name, value in merged.model.state_dict().items())
    # Training went on since: another best.safetensors than the merge was made of.
    from rsrefseg.checkpoints.model_file import load_tensors, save_tensors

    best = load_tensors(run / "best.safetensors")
    save_tensors(run / "best.safetensors", best.tensors, {**best.header, "step": best.header["step"] + 1})
    (tmp_path / "merged.safetensors").rename(run / "merged.safetensors")
    assert run_model(run).source == f"run {run}"


@pytest.mark.parametrize(
    "options",
    [
        {"run": Path("runs/1"), "base": True},
        {"run": Path("runs/1"), "backend": "onnxruntime"},
        {"bundle": Path("bundle"), "base": True},
    ],
)
def test_only_one_model_can_be_evaluated(options: dict) -> None:
    with pytest.raises(BadInputError, match="different models"):
        EvaluationRequest(Path("data"), **options)


def test_unknown_names_are_refused_before_any_work(exported: Exported, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="unknown protocol 'coco': choose one of rsrefseg, rmsin"):
        EvaluationRequest(exported.data, protocol="coco")
    with pytest.raises(BadInputError, match="unknown backend 'tpu'"):
        EvaluationRequest(exported.data, backend="tpu")
    with pytest.raises(BadInputError, match="no sample in the split 'test'"):
        run_evaluation(EvaluationRequest(exported.data, "test", run=exported.run))
    with pytest.raises(BadInputError, match="is not a run"):
        run_evaluation(EvaluationRequest(exported.data, "val", run=tmp_path))
    with pytest.raises(BundleError, match="no bundle"):
        run_evaluation(EvaluationRequest(exported.data, "val", bundle=tmp_path / "none"))


def test_masks_of_another_size_are_refused_or_counted(exported: Exported, tmp_path: Path) -> None:
    from PIL import Image

    data = tmp_path / "boxes"
    shutil.copytree(exported.data, data)
    path = open_dataset(data).split("val")[0].image_path
    with Image.open(path) as image:
        image.resize((40, 40)).save(path)
    with pytest.raises(BadInputError, match="--resize-masks"):
        run_evaluation(EvaluationRequest(data, "val", run=exported.run))
    report = run_evaluation(EvaluationRequest(data, "val", run=exported.run, resize_masks=True))
    assert report.resized_masks == 2
    assert "2 masks were resized" in printed(report)


def test_a_bundle_is_evaluated_without_pytorch(exported: Exported) -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path\n"
        "from rsrefseg.bench.accuracy.accuracy import EvaluationRequest, run_evaluation\n"
        f"request = EvaluationRequest(Path({str(exported.data)!r}), 'val', bundle=Path({str(exported.bundle)!r}))\n"
        "print(run_evaluation(request).metrics.samples)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "4", done.stderr
