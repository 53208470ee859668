"""Audit: how much of float16's range the activations take, measured in float32, with names and warnings."""

import json
import math
from pathlib import Path

import pytest
import torch

from rsrefseg.checkpoints.model_file import load_stage
from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.bundle.reference import load_reference
from rsrefseg.export.precision.audit import HALF_MAX, AuditReport, AuditRow, audit
from rsrefseg.export.precision.half_blocks import half_blocks
from rsrefseg.export.precision.half_model import open_half_model
from rsrefseg.runs.run import Run
from tests.support.commands import run_here
from tests.support.exported import Exported
from tests.support.planted import RESIDUAL, VISION, planted_model, vision_model
from tests.support.printing import printed


@pytest.fixture(scope="module")
def report(exported: Exported) -> AuditReport:
    torch.set_num_threads(1)
    return audit(open_half_model(exported.bundle, exported.run))


def test_every_half_block_is_audited_and_a_healthy_one_has_no_warning(report: AuditReport, exported: Exported) -> None:
    for stage in Stage:
        blocks = set(half_blocks(stage, load_stage(Run(exported.run).merged_path, stage)))
        assert {row.block for row in report.places if row.stage is stage} == blocks
        for block in blocks:
            found = {row.what for row in report.places if (row.stage, row.block) == (stage, block)}
            assert "output" in found
            assert "input" in found or block.endswith("embedding")  # tables take no activations
            assert "logits" in found or not block.endswith(("attn", "image", "token"))
    assert report.warnings == ()
    assert all(0 < row.share_of_float16 < 0.5 for row in report.places)


def test_maxima_are_those_of_the_model(report: AuditReport, exported: Exported) -> None:
    """One place measured by other means: what the neck's first convolution takes and gives."""
    stage = load_stage(Run(exported.run).merged_path, Stage.SAM_ENCODER)
    seen = {"input": 0.0, "output": 0.0}

    def look(_: object, args: tuple[torch.Tensor], result: torch.Tensor) -> None:
        seen["input"] = max(seen["input"], args[0].abs().max().item())
        seen["output"] = max(seen["output"], result.abs().max().item())

    stage.get_submodule("image_encoder.neck.0").register_forward_hook(look)
    with torch.no_grad():
        for sample in load_reference(Bundle.open(exported.bundle)):
            stage(torch.tensor(sample.tensors["image"]))
    for what, largest in seen.items():
        place = (Stage.SAM_ENCODER, "image_encoder.neck.0", what)
        row = next(row for row in report.places if (row.stage, row.block, row.what) == place)
        assert row.largest == pytest.approx(largest, rel=1e-5)
        assert row.share_of_float16 == row.largest / HALF_MAX


def test_warnings_name_the_places_but_not_what_is_float32() -> None:
    plan = {VISION: {"encoder.layers.4.mlp": "known"}}
    found = audit(vision_model(planted_model(RESIDUAL), plan))
    assert {(row.module, row.what) for row in found.warnings} == {
        ("encoder.layers.7.mlp.fc2", "output"),
        ("encoder.layers.7.mlp", "output"),
    }
    assert any(row.kept_float32 and row.share_of_float16 > 0.5 for row in found.places)
    assert found.largest_float32_part[VISION] > HALF_MAX > max(row.largest for row in found.places), (
        "the residual stream"
    )
    text = printed(found)
    assert "warning: siglip_vision encoder.layers.7.mlp.fc2 output reaches" in text
    assert "rsrefseg parity --bisect" in text


def test_infinities_are_warned_of_and_null_in_json() -> None:
    row = AuditRow.of(VISION, ("encoder.layers.0.mlp", "encoder.layers.0.mlp.fc1", "output"), math.inf, kept=False)
    broken = AuditReport(Path("run"), 1, (row,), {VISION: math.inf})
    document = json.loads(json.dumps(broken.to_dict(), allow_nan=False))
    assert document["places"][0]["largest"] is None
    assert document["places"][0]["warned"]
    assert "not finite" in printed(broken)


def test_the_command_prints_a_table_or_json(exported: Exported, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("parity", "--audit", "--bundle", exported.bundle, "--run", exported.run)
    ran = run_here(capsys, *options, "--json")
    assert ran.code == 0, ran.err
    document = json.loads(ran.out)
    assert document["samples"] >= 1
    assert {place["stage"] for place in document["places"]} == set(Stage)
    table = run_here(capsys, *options).out
    assert all(f" {stage} " in table for stage in Stage)
