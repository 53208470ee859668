"""Parity: a correct export passes, an injected fault fails exactly the rows it affects."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from msgspec import to_builtins

from rsrefseg.bench.parity.parity import mask_rows, run_parity
from rsrefseg.bench.parity.report import ParityReport
from rsrefseg.engines.bundle.bundle import Bundle, file_record
from rsrefseg.engines.bundle.comparison import mask_iou, tensor_error
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.bundle.manifest import Precision
from rsrefseg.engines.bundle.reference import load_reference
from rsrefseg.engines.bundle.tolerances import COARSENESS, TOLERANCES, Measure, Scope, judge, tie_share, tolerances
from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.images.images import upsample_logits
from rsrefseg.engines.onnxruntime.engine import OnnxRuntimeEngine
from rsrefseg.engines.segmenter import Segmenter
from tests.support.commands import run_here
from tests.support.exported import Exported, shifted_bundle
from tests.support.made_bundle import change_manifest, change_stage
from tests.support.places import Capsys
from tests.support.printing import printed

LIMIT = 1e-4
PROMPTS = {"sparse_prompts", "mask_prompt"}
OUTPUTS = PROMPTS | {"clip_features", "word_features", "sentence_feature", "image_embedding", "mask_logits"}
CHAINED = PROMPTS | {"mask_logits"}


def rows(stage: set[str], chained: set[str]) -> set[tuple[str, str]]:
    return {("stage", name) for name in stage} | {("chained", name) for name in chained}


def failed(report: ParityReport) -> set[tuple[str, str]]:
    return {(row.check, row.output) for row in report.tensors if not row.passed}


@pytest.fixture(scope="module")
def report(exported: Exported) -> ParityReport:
    return run_parity(exported.bundle, "onnxruntime", exported.data, "val", exported.run)


def test_a_true_export_holds_on_every_row(exported: Exported, report: ParityReport) -> None:
    assert report.holds
    assert {(row.check, row.output) for row in report.tensors} == rows(OUTPUTS, CHAINED)
    assert failed(report) == set()
    for row in report.tensors:
        # Two different programs never agree to the last bit everywhere; what is compared is not one thing twice.
        assert row.share_of_max <= LIMIT
        assert row.cosine == pytest.approx(1.0, abs=1e-6)
    assert max(row.max_abs_error for row in report.tensors) > 0
    assert all(row.iou >= 0.999 for row in report.masks.rows)
    samples = load_reference(Bundle.open(exported.bundle))
    assert any(sample.masks.any() for sample in samples)
    assert len(report.masks.rows) == sum(len(sample.phrases) for sample in samples)
    assert report.data is not None
    assert report.data.samples == 4
    assert report.data.giou_torch > 0.05
    assert abs(report.data.giou_difference) <= 0.0005


def test_the_report_is_complete_in_json_and_text(report: ParityReport) -> None:
    document = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert document["holds"] is True
    assert document["backend"] == "onnxruntime"
    assert document["providers"] == dict.fromkeys(Stage, "CPUExecutionProvider")
    assert set(document["tensors"][0]) >= {"max_abs_error", "share_of_max", "relative_l2", "cosine", "limits", "passed"}
    assert set(document["masks"]) >= {"iou_worst", "iou_mean", "max_logit_error", "flipped_pixels", "passed"}
    assert set(document["data"]) >= {"gIoU_torch", "gIoU_engine", "gIoU_difference", "passed"}
    assert document["masks"]["rows"][0]["phrase"].startswith("the ")
    text = printed(report)
    assert text.count("PASS") == len(report.tensors) + 2
    assert "FAIL" not in text
    assert "parity holds" in text


# Which output of a stage is made wrong, by what share of its maximum, and what this reaches of the chain.
FAULTS = {
    Stage.SIGLIP_VISION: ("clip_features", 0.25, CHAINED),
    Stage.SIGLIP_TEXT: ("sentence_feature", 1.0, CHAINED),
    Stage.ATTN_PROMPTER: ("sparse_prompts", 4.0, {"sparse_prompts", "mask_logits"}),
    Stage.SAM_ENCODER: ("image_embedding", 0.02, {"mask_logits"}),
    Stage.SAM_DECODER: ("mask_logits", 0.002, {"mask_logits"}),
}


def shift_of(bundle: Bundle, output: str, share: float) -> np.ndarray:
    """Return the shift of every other element that changes an output by ``share`` of its maximum."""
    references = [sample.tensors[output] for sample in load_reference(bundle)]
    shift = np.zeros((1, *references[0].shape[1:]), np.float32)
    shift[..., ::2] = share * max(np.abs(reference).max() for reference in references)
    return shift


def chained_errors(bundle: Bundle, output: str, shift: np.ndarray) -> dict[str, float]:
    """Return the chained outputs for a shifted tensor, computed with the unchanged graphs."""
    errors: dict[str, float] = {}
    with OnnxRuntimeEngine(bundle, threads=1) as engine:
        for sample in load_reference(bundle):
            tensors = {name: sample.tensors[name] for name in ("image", "input_ids", "token_mask")}
            for stage in Stage:
                contract = bundle.manifest.stages[stage].contract
                found = engine.run(stage, {spec.name: tensors[spec.name] for spec in contract.inputs})
                if output in found:
                    found = {**found, output: found[output] + shift}
                tensors |= found
                for name, reference in sample.outputs(contract).items():
                    errors[name] = max(errors.get(name, 0.0), tensor_error(reference, found[name]).share_of_max)
    return errors


@pytest.mark.parametrize("stage", Stage)
def test_a_fault_fails_only_its_rows(exported: Exported, report: ParityReport, tmp_path: Path, stage: Stage) -> None:
    """The fault exceeds the limit ten times in every row that it affects."""
    bundle, (output, share, chained) = Bundle.open(exported.bundle), FAULTS[stage]
    shift = shift_of(bundle, output, share)
    expected = chained_errors(bundle, output, shift)
    assert min(expected[name] for name in chained) >= 10 * LIMIT
    spoiled = run_parity(shifted_bundle(exported.bundle, tmp_path / "bundle", stage, output, shift), "onnxruntime")
    reached = rows({output}, chained)
    assert failed(spoiled) == reached
    true_rows = {(row.check, row.output): row for row in report.tensors}
    for row in spoiled.tensors:
        if (row.check, row.output) not in reached:
            assert row == true_rows[row.check, row.output]
        elif row.check == "chained":
            assert row.share_of_max == pytest.approx(expected[row.output], rel=0.01)
    assert not spoiled.masks.passed
    assert not spoiled.holds
    text = printed(spoiled)
    assert text.count("FAIL") >= len(reached)
    assert "parity does not hold" in text


def test_the_command_ends_with_1_when_parity_does_not_hold(exported: Exported, tmp_path: Path, capsys: Capsys) -> None:
    shift = shift_of(Bundle.open(exported.bundle), "mask_logits", 0.5)
    spoiled = shifted_bundle(exported.bundle, tmp_path / "bundle", Stage.SAM_DECODER, "mask_logits", shift)
    ran = run_here(capsys, "parity", "--bundle", spoiled, "--backend", "onnxruntime", "--json")
    assert ran.code == 1
    document = json.loads(ran.out)
    assert (document["holds"], document["masks"]["passed"]) == (False, False)
    assert "parity does not hold" in ran.err


def test_a_graph_that_gives_not_a_number_fails_and_its_report_is_still_json(exported: Exported, tmp_path: Path) -> None:
    shift = np.full((1, 1, 1, 1), np.nan, np.float32)
    spoiled = shifted_bundle(exported.bundle, tmp_path / "bundle", Stage.SAM_ENCODER, "image_embedding", shift)
    report = run_parity(spoiled, "onnxruntime", exported.data, "val", exported.run)
    assert failed(report) == rows({"image_embedding"}, {"mask_logits"})
    assert not report.masks.passed
    assert report.data is not None
    assert not report.data.passed
    assert report.data.giou_engine < report.data.giou_torch
    document = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    row = next(row for row in document["tensors"] if row["output"] == "image_embedding")
    assert (row["max_abs_error"], row["passed"]) == (None, False)


def test_a_flipped_pixel_counts_and_is_reported_as_a_tie(exported: Exported) -> None:
    with Segmenter.open(exported.bundle, "onnxruntime") as segmenter:
        sample = load_reference(segmenter.bundle)[0]
        logits = sample.tensors["mask_logits"][0, 0]
        fine = upsample_logits(logits, segmenter.bundle.manifest.geometry.image_size, sample.original_size)
        weakest = np.unravel_index(np.argmin(np.abs(fine)), fine.shape)
        masks = sample.masks.copy()
        masks[0] = fine > 0
        masks[0][weakest] = ~masks[0][weakest]
        share = float(np.abs(fine[weakest]) / np.abs(logits).max())
        tie, fault = (
            mask_rows(segmenter, 0, replace(sample, masks=masks), allowed)[0]
            for allowed in (1.01 * share, 0.99 * share)
        )
    assert (tie.flipped_pixels, tie.flipped_ties) == (1, 1)
    assert (fault.flipped_pixels, fault.flipped_ties) == (1, 0)
    assert fault.iou == tie.iou < 1.0


def test_a_tokenizer_that_reads_the_phrases_otherwise_fails(exported: Exported, tmp_path: Path) -> None:
    root = Path(shutil.copytree(exported.bundle, tmp_path / "bundle"))
    path = root / "tokenizer.json"
    document = json.loads(path.read_text())
    words = document["model"]["vocab"]
    words["the"], words["box"] = words["box"], words["the"]
    path.write_text(json.dumps(document))
    change_manifest(root, lambda value: value.update(tokenizer=to_builtins(file_record(path))))
    report = run_parity(root, "onnxruntime")
    assert not report.tokens_equal
    assert not report.holds
    assert failed(report) == set()  # the graphs themselves are right
    assert "tokenizer" in printed(report)


def test_a_half_precision_stage_and_what_follows_it_have_their_own_limits(exported: Exported, tmp_path: Path) -> None:
    root = Path(shutil.copytree(exported.bundle, tmp_path / "bundle"))
    change_stage(root, Stage.ATTN_PROMPTER, precision="fp16")
    measures = {(row.check, row.output): set(row.limits) for row in run_parity(root, "onnxruntime").tensors}
    by_half = rows(PROMPTS, CHAINED)
    assert all(measures[key] == {Measure.RELATIVE_L2} for key in by_half)
    assert all(measures[key] == {Measure.SHARE_OF_MAX} for key in measures.keys() - by_half)


def test_another_run_than_the_exported_one_is_refused_by_both_digests(exported: Exported, tmp_path: Path) -> None:
    run = Path(shutil.copytree(exported.run, tmp_path / "run"))
    with (run / "merged.safetensors").open("ab") as stream:
        stream.write(b"\0")
    wanted = Bundle.open(exported.bundle).manifest.provenance.checkpoint_sha256
    assert wanted is not None
    with pytest.raises(BadInputError, match=wanted[:12]):
        run_parity(exported.bundle, "onnxruntime", exported.data, "val", run)
    (run / "merged.safetensors").unlink()
    with pytest.raises(BadInputError, match="no merged model"):
        run_parity(exported.bundle, "onnxruntime", exported.data, "val", run)


def test_every_precision_has_limits_for_everything() -> None:
    assert set(get_args(Precision)) < set(COARSENESS)
    for precision in COARSENESS:
        assert len(tolerances(precision, Scope.STAGE)) == 1
        assert Measure.IOU_WORST in {limit.measure for limit in tolerances(precision, Scope.MASKS)}
        assert [limit.measure for limit in tolerances(precision, Scope.DATA)] == [Measure.GIOU_DIFFERENCE]


def test_the_limits_that_were_promised() -> None:
    promised = {
        ("fp32", Scope.STAGE, Measure.SHARE_OF_MAX): 1e-4,
        ("fp32", Scope.MASKS, Measure.IOU_WORST): 0.999,
        ("fp32", Scope.DATA, Measure.GIOU_DIFFERENCE): 0.0005,
        ("fp16", Scope.STAGE, Measure.RELATIVE_L2): 1e-2,
        ("fp16", Scope.MASKS, Measure.IOU_MEAN): 0.995,
        ("fp16", Scope.MASKS, Measure.IOU_WORST): 0.98,
        ("fp16", Scope.DATA, Measure.GIOU_DIFFERENCE): 0.002,
    }
    found = {(limit.precision, limit.scope, limit.measure): limit.limit for limit in TOLERANCES}
    assert promised.items() <= found.items()
    shares = [tie_share(tolerances(precision, Scope.MASKS)) for precision in ("fp32", "fp16")]
    assert shares == [1e-4, 0.0], "only limits on logits make ties"


@pytest.mark.parametrize("measure", Measure)
def test_a_limit_accepts_equality_and_rejects_nan(measure: Measure) -> None:
    limit = replace(TOLERANCES[0], measure=measure, limit=0.5)
    beyond = math.nextafter(0.5, 0 if measure.sign == ">=" else 1)
    verdicts = [judge({measure: value}, (limit,))[0].passed for value in (0.5, beyond, math.nan)]
    assert verdicts == [True, False, False]


def test_manually_computed_errors() -> None:
    error = tensor_error(np.array([3.0, -4.0], np.float32), np.array([3.0, -3.0], np.float32))
    assert (error.max_abs, error.share_of_max) == (1.0, 0.25)
    assert error.relative_l2 == pytest.approx(1 / 5)
    assert error.cosine == pytest.approx((9 + 12) / (5 * math.sqrt(18)))
    zeros = np.zeros(2, np.float32)
    assert tensor_error(zeros, zeros).share_of_max == 0.0
    assert tensor_error(zeros, zeros + 1).share_of_max == math.inf
    for bad in (math.nan, math.inf):
        broken = np.array([1.0, bad], np.float32)
        assert tensor_error(zeros + 1, broken).relative_l2 == math.inf
        assert tensor_error(broken, broken).max_abs == math.inf, "a broken reference proves nothing"
    empty, half = np.zeros((2, 2), bool), np.array([[True, True], [False, False]])
    assert mask_iou(empty, empty) == 1.0
    assert mask_iou(half, empty) == 0.0
    assert mask_iou(half, np.ones((2, 2), bool)) == 0.5
