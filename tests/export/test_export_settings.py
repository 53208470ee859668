"""What a bundle is exported for: target and form of attention stand in the manifest, another opset is told apart."""

from pathlib import Path

import onnx
import pytest

from rsrefseg.bench.parity.parity import run_parity
from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.errors import BadInputError, MissingPartError
from rsrefseg.engines.tensorrt.store import find_engine
from rsrefseg.export.export import export_run
from rsrefseg.export.graph import FUSED_OPSET, OPSET
from rsrefseg.export.settings import GraphSettings
from rsrefseg.inference.attention import FORMS, Target
from tests.support.commands import assert_refused, run_here
from tests.support.exported import Exported
from tests.support.small import small_config


@pytest.fixture(scope="module")
def fused(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The small run with Attention nodes, and another form of attention asked for."""
    path = tmp_path_factory.mktemp("fused") / "bundle"
    settings = GraphSettings(Target.OPENVINO, "windowed=additive,global=folded:2,mlp=2", FUSED_OPSET)
    export_run(exported.run, path, None, settings)
    return Bundle.open(path)


def operators(bundle: Bundle, stage: Stage) -> list[str]:
    return [node.op_type for node in onnx.load(bundle.graph_path(stage), load_external_data=False).graph.node]


def test_the_manifest_says_for_whom_attention_was_chosen_and_why(exported: Exported, fused: Bundle) -> None:
    for stage, record in Bundle.open(exported.bundle).manifest.stages.items():
        if stage is Stage.SAM_ENCODER:
            assert record.attention is not None
            assert str(record.attention) == "windowed folded, global additive, for onnxruntime"
            assert record.attention.reason == FORMS[Target.ONNXRUNTIME].reason
        else:
            assert record.attention is None
    asked = fused.manifest.stages[Stage.SAM_ENCODER].attention
    assert asked is not None
    assert str(asked) == "windowed additive, global folded in 2 parts, MLP in 2 parts, for openvino"
    assert asked.reason == "asked for: --attention windowed=additive,global=folded:2,mlp=2"


def test_weight_bytes_are_those_of_the_files(exported: Exported) -> None:
    bundle = Bundle.open(exported.bundle)
    for record in bundle.manifest.stages.values():
        stored = sum(file.size_bytes for file in (record.graph, *record.data))
        assert 4 * record.parameters <= record.weight_bytes <= stored


def test_every_softmax_but_the_folded_ones_becomes_an_attention_node_when_asked_for(
    exported: Exported, fused: Bundle
) -> None:
    """Folded queries and keys have more channels than values; ONNX Runtime 1.31 computes that wrongly on CUDA."""
    plain = Bundle.open(exported.bundle)
    for stage in Stage:
        assert (plain.manifest.stages[stage].opset, fused.manifest.stages[stage].opset) == (OPSET, FUSED_OPSET)
        wanted = operators(plain, stage).count("Softmax")
        folded = 0
        if stage is Stage.SAM_ENCODER:
            wanted, folded = 1, 2  # its windowed block, its global one in two parts
        assert operators(fused, stage).count("Attention") == wanted
        assert operators(fused, stage).count("Softmax") == folded
        assert "Attention" not in operators(plain, stage)


def test_attention_nodes_give_the_same_answers_and_count_the_same_work(exported: Exported, fused: Bundle) -> None:
    report = run_parity(fused.root, "onnxruntime", exported.data, "val", exported.run)
    assert report.holds
    before = Bundle.open(exported.bundle).manifest.stages
    for stage, record in fused.manifest.stages.items():
        if stage is not Stage.SAM_ENCODER:  # which has other forms
            assert record.flops == before[stage].flops


def test_tensorrt_refuses_an_opset_it_does_not_read(fused: Bundle) -> None:
    with pytest.raises(MissingPartError, match=r"opset 23 of 'siglip_vision': export the bundle again without --opset"):
        find_engine(fused, Stage.SIGLIP_VISION, None)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"opset": 19}, "--opset 19 is not offered: choose 18, or 23"),
        ({"opset": 23, "target": Target.TENSORRT}, "TensorRT 10.3 does not read opset 23"),
        ({"attention": "global=linear"}, "--attention 'global=linear' is not understood"),
    ],
)
def test_settings_that_nothing_could_read_are_refused(settings: dict[str, object], told: str) -> None:
    with pytest.raises(BadInputError, match=told):
        GraphSettings(**settings)


@pytest.mark.parametrize("attention", ["global=additive:3", "mlp=3"])
def test_parts_that_do_not_divide_the_grid_are_refused_before_any_work(
    exported: Exported, tmp_path: Path, attention: str
) -> None:
    assert small_config().sam.grid_size == 4
    with pytest.raises(BadInputError, match="4 rows of SAM's grid cannot be taken in 3 equal parts"):
        export_run(exported.run, tmp_path / "bundle", None, GraphSettings(attention=attention))
    assert not (tmp_path / "bundle").exists()


def test_the_command_refuses_unknown_targets(exported: Exported, capsys: pytest.CaptureFixture[str]) -> None:
    ran = run_here(capsys, "export", exported.run, "--target", "toaster")
    assert_refused(ran, "--target 'toaster'", "onnxruntime, onnxruntime-cuda, openvino, tensorrt")
