"""Bisect: massive activations break a naive cast, the default plan survives them, and culprits are found by name."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from torch import nn

from rsrefseg.checkpoints.model_file import load_tensors, save_tensors
from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage, StageContract
from rsrefseg.export import export as bundle_module
from rsrefseg.export.export import export_run
from rsrefseg.export.graph import export_graph
from rsrefseg.export.precision.bisection import bisect, bisect_stage, run_bisect, smallest_set
from rsrefseg.export.precision.plan import read_plan
from rsrefseg.export.settings import ExportSettings
from tests.support.commands import assert_refused, run_here
from tests.support.export_jobs import Shortcut
from tests.support.exported import Exported
from tests.support.places import Capsys
from tests.support.planted import RESIDUAL, VISION, planted_model, vision_model
from tests.support.printing import printed


def test_massive_activations_break_a_naive_cast_and_the_default_plan_holds() -> None:
    model = vision_model(planted_model(RESIDUAL))
    naive = model.check_module(VISION, model.load(VISION).half())
    assert not naive.passed
    assert naive.error.relative_l2 == math.inf
    result = bisect_stage(model, VISION)
    assert (result.evaluations, result.keep_float32) == (1, {})


@pytest.mark.parametrize(
    ("writes", "known", "culprits"),
    [
        ({0: 95_000.0}, (), [0]),
        ({5: 95_000.0}, (), [5]),
        ({11: 95_000.0}, (), [11]),
        ({2: 95_000.0, 9: -190_000.0}, (), [2, 9]),
        ({2: 95_000.0, 9: -190_000.0}, (2,), [9]),
    ],
)
def test_bisect_names_the_blocks_that_overflow_besides_those_of_the_plan_and_its_plan_holds(
    writes: dict[int, float], known: tuple[int, ...], culprits: list[int], tmp_path: Path
) -> None:
    plan = {f"encoder.layers.{block}.mlp": "known before" for block in known}
    model = vision_model(planted_model(writes), {VISION: plan})
    assert not model.check(VISION, plan).passed
    report = bisect(model, tmp_path / "plan.json")
    (stage,) = report.stages
    assert stage.blocks == 26
    assert stage.evaluations <= 12
    assert stage.keep_float32 is not None
    assert sorted(stage.keep_float32) == [f"encoder.layers.{block}.mlp" for block in culprits]
    assert all("float16 ends at 65,504" in reason for reason in stage.keep_float32.values())
    assert report.plan[VISION] == {**plan, **stage.keep_float32}
    assert model.check(VISION, report.plan[VISION]).passed


def test_a_stage_that_differs_for_another_reason_fails_and_no_plan_is_offered(tmp_path: Path) -> None:
    other = vision_model(planted_model({0: 100.0}))
    report = bisect(dataclasses.replace(vision_model(planted_model({})), load=other.load), tmp_path / "plan.json")
    (failed,) = report.stages
    assert failed.keep_float32 is None
    helped = replace(failed, stage=Stage.SIGLIP_TEXT, keep_float32={"head": "overflows"})
    for each in (report, replace(report, stages=(failed, helped))):
        assert not each.holds
        assert each.plan_path is None
        assert "FAIL" in printed(each)


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.just(n), st.sets(st.integers(0, n - 1), max_size=4))))
def test_the_search_finds_exactly_the_culprits(case: tuple[int, set[int]]) -> None:
    count, places = case
    culprits, trials = {str(place) for place in places}, set()

    def holds(chosen: frozenset[str]) -> bool:
        trials.add(chosen)
        return culprits <= chosen

    assert set(smallest_set([str(number) for number in range(count)], holds) or ()) == culprits
    if len(culprits) == 1:
        assert len(trials) <= 12


def test_the_search_gives_up_where_nothing_helps() -> None:
    assert smallest_set(["a", "b", "c"], lambda chosen: False) is None
    assert smallest_set((), lambda chosen: False) is None


def test_the_command_says_when_nothing_has_to_be_done(exported: Exported, tmp_path: Path, capsys: Capsys) -> None:
    plan = tmp_path / "plan.json"
    options = ("--bundle", exported.bundle, "--run", exported.run)
    ran = run_here(capsys, "parity", "--bisect", *options, "--plan", plan, "--json")
    assert ran.code == 0, ran.err
    document = json.loads(ran.out)
    assert document["holds"] is True
    assert [(stage["evaluations"], stage["keep_float32"]) for stage in document["stages"]] == [(1, {})] * len(Stage)
    assert document["plan_path"] is None
    assert not plan.exists()
    assert_refused(run_here(capsys, "parity", "--bisect", "--audit", *options), "--audit", "--bisect")
    assert_refused(run_here(capsys, "parity", "--bisect", "--data", exported.data, *options), "--data")
    assert_refused(run_here(capsys, "parity", "--bisect", "--plan", tmp_path, *options), "folder")


def test_the_offered_plan_makes_a_bundle_that_holds(
    exported: Exported, tmp_path: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trained run whose text head overflows in half: found, planned, exported. Its other graphs are as before."""
    run = overflowing_run(exported.run, tmp_path / "run")
    before = Shortcut(exported.bundle)

    def export(module: nn.Module, contract: StageContract, path: Path, opset: int) -> None:
        (export_graph if contract.stage is Stage.SIGLIP_TEXT else before)(module, contract, path, opset)

    monkeypatch.setattr(bundle_module, "export_graph", export)
    export_run(run, tmp_path / "bundle", ExportSettings(plan={}))
    plan = tmp_path / "plan.json"
    report = run_bisect(tmp_path / "bundle", run, plan)
    assert report.holds
    assert report.command == f"rsrefseg export {run} --fp16 --plan {plan}"
    text = " ".join(printed(report).split())
    assert f"keep float32: {Stage.SIGLIP_TEXT} head" in text
    assert report.command in text
    assert list(read_plan(plan)[Stage.SIGLIP_TEXT]) == ["head"]

    ran = run_here(capsys, *report.command.split()[1:], "--out", tmp_path / "bundle")
    assert ran.code == 0, ran.err
    kept = Bundle.open(tmp_path / "bundle").manifest.stages[Stage.SIGLIP_TEXT].precision_plan[-1]
    assert kept.module == "head"
    assert "float16 ends at 65,504" in kept.reason
    ran = run_here(capsys, "parity", "--bundle", tmp_path / "bundle", "--backend", "onnxruntime")
    assert ran.code == 0, ran.err
    report = run_bisect(tmp_path / "bundle", run, tmp_path / "second.json")
    assert report.holds
    assert not (tmp_path / "second.json").exists()
    assert list(report.plan[Stage.SIGLIP_TEXT]) == ["head"]


def overflowing_run(source: Path, target: Path) -> Path:
    """A copy of a run whose sentence feature passes 65,504 in one channel; only its direction counts later on."""
    shutil.copytree(source, target)
    file = load_tensors(target / "merged.safetensors")
    file.tensors["siglip_text.head.bias"][0] = 65_000.0
    file.tensors["siglip_text.head.weight"] *= 2_000.0
    save_tensors(file.path, file.tensors, file.header)
    return target
