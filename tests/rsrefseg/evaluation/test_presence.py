"""``calibrate``: presence scores tell phrases with a target from those without, and travel with run and bundle."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from rsrefseg.checkpoints.model_file import digest
from rsrefseg.cli import run_command
from rsrefseg.data.formats import open_dataset
from rsrefseg.data.samples import group_by_image
from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.errors import BadInputError
from rsrefseg.evaluation.presence import calibrate, fit, presence_of, with_absent
from rsrefseg.runs.run import Run
from tests.support.exported import Exported
from tests.support.places import beside_run
from tests.support.small import write_boxes


def test_the_fit_recovers_a_known_logistic() -> None:
    random = np.random.default_rng(0)
    strengths = random.normal(0.4, 3, 20_000)
    present = random.random(20_000) < 1 / (1 + np.exp(-(1.5 * strengths - 0.6)))
    found = fit(strengths, present, "0" * 64)
    middle = -found.bias / found.scale
    assert found.scale == pytest.approx(1.5, rel=0.1)
    assert middle == pytest.approx(0.4, abs=0.1)
    assert found.auc > 0.9


def test_the_auc_counts_pairs_and_a_perfect_separation_stays_finite() -> None:
    found = fit(np.array([1.0, 3.0, 2.0, 0.0]), np.array([True, True, False, False]), "0" * 64)
    assert found.auc == 0.75
    perfect = fit(np.array([5.0, 6.0, -5.0, -6.0]), np.array([True, True, False, False]), "0" * 64)
    assert perfect.auc == 1
    assert fit(np.ones(4), np.array([True, True, False, False]), "0" * 64).auc == 0.5
    assert np.isfinite([perfect.scale, perfect.bias]).all()
    assert perfect.scale * 5 + perfect.bias > 0 > perfect.scale * -5 + perfect.bias


@pytest.mark.parametrize("present", [[True, True], [False, False]])
def test_phrases_of_one_kind_only_are_refused(present: list[bool]) -> None:
    with pytest.raises(BadInputError, match="target"):
        fit(np.array([1.0, 2.0]), np.array(present), "0" * 64)


def test_a_split_of_one_class_is_refused_before_the_run_is_merged(exported: Exported, tmp_path: Path) -> None:
    run = Run(Path(shutil.copytree(exported.run, tmp_path / "run")))
    run.merged_path.unlink()
    with pytest.raises(BadInputError, match="different classes"):
        calibrate(run.path, exported.data)
    assert not run.merged_path.exists()


def test_absent_phrases_are_of_classes_that_the_image_does_not_have(tmp_path: Path) -> None:
    from rsrefseg.synth import Domain, synthesize

    synthesize(tmp_path / "scenes", domain=Domain.A, train=0, val=5, test=0, size=64)
    samples = open_dataset(tmp_path / "scenes").split("val")
    asked = with_absent(samples)
    assert len(asked) == 2 * len(samples)
    for group in group_by_image(asked):
        own = {sample.category for sample in group if sample.has_target}
        absent = [sample for sample in group if not sample.has_target]
        assert len(absent) == len(group) / 2
        assert own.isdisjoint(sample.category for sample in absent)
        assert not any(sample.mask().any() for sample in absent)
    assert with_absent(asked) == asked, "a data set with absent phrases of its own is used as it is"


def test_scores_travel_from_the_run_to_every_result(
    exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside_run(exported, tmp_path, monkeypatch)
    write_boxes(tmp_path / "more", absent=True)
    infer = ["infer", "scene.jpg", "the red box", "--json"]
    assert run_command([*infer, "--absent-below", "0.5"])[0] == 2, "this bundle has no scores"
    code, report = run_command(["calibrate", "--data", "more"])
    assert code == 0
    assert report["presence"]["with_target"] > 0 < report["presence"]["without_target"]
    assert report["mean_with_target"] > report["mean_without_target"]
    assert run_command(["export"])[0] == 0
    presence = Bundle.open().manifest.presence
    assert presence is not None
    assert presence.to_dict() == report["presence"] == json.loads(Path("runs/001/presence.json").read_bytes())
    (plain,) = run_command(infer)[1]["results"]
    assert 0 < plain["presence"] < 1
    assert plain["area_px"] > 0
    (empty,) = run_command([*infer, "--absent-below", "1"])[1]["results"]
    assert (empty["area_px"], empty["presence"]) == (0, plain["presence"])
    both = [["--run", "runs/001"], ["--backend", "onnxruntime"]]
    on_run, on_bundle = (
        run_command(["eval", "--data", "more", "--split", "val", *model, "--absent-below", "1"])[1] for model in both
    )
    for scores in (on_run, on_bundle):
        assert (scores["N-acc"], scores["T-acc"]) == (1, 0), "every mask is empty"
    # Scores belong to a model: those of an earlier one are left out.
    run = Run(Path("runs/001"))
    assert presence_of(run, digest(run.merged_path)) == presence
    assert presence_of(run, "0" * 64) is None
