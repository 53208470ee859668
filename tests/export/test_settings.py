"""Target, form of attention and operator set: their defaults, what may be chosen, and what the manifest says of it."""

from dataclasses import replace
from pathlib import Path

import pytest

from rsrefseg.bench.parity.parity import run_parity
from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.errors import BadInputError
from rsrefseg.export.export import export_run
from rsrefseg.export.settings import REASONS, ExportSettings, Target, default_attention, parse_attention
from rsrefseg.inference.attention import AttentionChoice, AttentionForm
from rsrefseg.model.config import model_config
from tests.support.commands import assert_refused, run_here
from tests.support.exported import Exported
from tests.support.places import Capsys
from tests.support.small import small_config


@pytest.mark.parametrize("target", [Target.ONNXRUNTIME, Target.OPENVINO])
@pytest.mark.parametrize("fp16", [False, True])
def test_on_cpus_the_default_keeps_each_part_small(target: Target, fp16: bool) -> None:
    tiny = default_attention(model_config("tiny").sam, target, fp16)
    assert (tiny.query_parts, tiny.mlp_parts) == (1, 1)
    wanted = AttentionChoice(AttentionForm.FOLDED, AttentionForm.ADDITIVE, query_parts=8)
    if target is Target.ONNXRUNTIME and not fp16:
        wanted = replace(wanted, mlp_parts=4)
    for preset in ("b", "l"):
        assert default_attention(model_config(preset).sam, target, fp16) == wanted


def test_on_gpus_the_default_is_one_part() -> None:
    cuda = AttentionChoice(AttentionForm.PADDED, AttentionForm.PADDED)
    tensorrt = AttentionChoice(AttentionForm.ADDITIVE, AttentionForm.PADDED)
    assert default_attention(model_config("b").sam, Target.ONNXRUNTIME_CUDA) == cuda
    assert default_attention(model_config("b").sam, Target.TENSORRT) == tensorrt


def test_nodes_of_attention_are_for_cuda_only_and_have_no_parts() -> None:
    assert [target for target in Target if ExportSettings(target=target).fused] == [Target.ONNXRUNTIME_CUDA]
    for form in AttentionForm:
        settings = ExportSettings(target=Target.ONNXRUNTIME_CUDA, attention=f"global={form}:4")
        if form is AttentionForm.FOLDED:
            assert settings.resolve(model_config("b"))[0].query_parts == 4
        else:
            with pytest.raises(BadInputError, match="':4'"):
                settings.resolve(model_config("b"))


def test_without_a_target_half_precision_is_for_tensorrt() -> None:
    assert ExportSettings().runtime is Target.ONNXRUNTIME
    assert ExportSettings(plan={}).runtime is Target.TENSORRT
    assert ExportSettings(plan={}, target=Target.ONNXRUNTIME).runtime is Target.ONNXRUNTIME


def test_tensorrt_in_single_precision_gets_a_note() -> None:
    assert "--fp16" in ExportSettings(target=Target.TENSORRT).notes[0]
    assert ExportSettings().notes == ExportSettings(plan={}).notes == ()


def test_another_form_can_be_chosen() -> None:
    default = AttentionChoice(AttentionForm.FOLDED, AttentionForm.ADDITIVE, 16)
    assert parse_attention("windowed=published", default) == replace(default, windowed=AttentionForm.PUBLISHED)
    chosen = parse_attention("windowed=additive, global=folded:4", default)
    assert chosen == AttentionChoice(AttentionForm.ADDITIVE, AttentionForm.FOLDED, 4)
    assert parse_attention("global=folded", default).query_parts == 1
    assert parse_attention("mlp=2", default) == replace(default, mlp_parts=2)


@pytest.mark.parametrize(
    "settings",
    [
        *(
            {"attention": text}
            for text in ("", "folded", "windowed=fused", "windowed=folded:2", "global=folded:0", "global=:4", "mlp=0")
        ),
    ],
)
def test_settings_that_no_runtime_could_read_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(BadInputError, match=f"--{next(iter(settings))}"):
        ExportSettings(**settings)


@pytest.mark.parametrize("attention", ["global=additive:3", "mlp=3"])
def test_parts_that_do_not_divide_the_grid_are_refused(exported: Exported, tmp_path: Path, attention: str) -> None:
    assert small_config().sam.grid_size == 4
    with pytest.raises(BadInputError, match="4 rows of SAM's grid cannot be divided into 3"):
        export_run(exported.run, tmp_path / "bundle", ExportSettings(attention=attention))
    assert not (tmp_path / "bundle").exists()


def test_the_command_refuses_unknown_targets(exported: Exported, capsys: Capsys) -> None:
    assert_refused(run_here(capsys, "export", exported.run, "--target", "toaster"), "toaster", *Target)


def test_the_manifest_says_for_which_target_attention_was_chosen_and_why(
    bundle: Bundle, mixed_bundle: Bundle, fused_bundle: Bundle
) -> None:
    for stage, record in bundle.manifest.stages.items():
        assert (record.attention is not None) is (stage is Stage.SAM_ENCODER)
    default = bundle.manifest.stages[Stage.SAM_ENCODER].attention
    assert default is not None
    assert str(default) == "windowed folded, global additive, for onnxruntime"
    assert default.reason == REASONS[Target.ONNXRUNTIME]
    fused = fused_bundle.manifest.stages[Stage.SAM_ENCODER].attention
    assert str(fused) == "windowed padded, global padded, one node each, for onnxruntime-cuda"
    chosen = mixed_bundle.manifest.stages[Stage.SAM_ENCODER].attention
    assert chosen is not None
    assert str(chosen) == "windowed additive, global folded in 2 parts, MLP in 2 parts, for onnxruntime-cuda"
    assert "--attention windowed=additive,global=folded:2,mlp=2" in chosen.reason


def test_attention_nodes_give_the_same_masks(
    exported: Exported, fused_bundle: Bundle, fused_half_bundle: Bundle, mixed_bundle: Bundle
) -> None:
    for bundle in (fused_bundle, fused_half_bundle, mixed_bundle):
        assert run_parity(bundle.root, "onnxruntime", exported.data, "val", exported.run).holds


def test_a_refused_export_of_the_base_leaves_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capsys
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(run_here(capsys, "export", "--base", "--attention", "global=folded:7"), "7 equal parts")
    assert_refused(run_here(capsys, "export", "--base", "--random-weights", "tiny"), "contradict")
    assert not any(tmp_path.iterdir())
