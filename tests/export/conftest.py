"""One export of the small run in each precision and form, shared by all tests of export. Not to be changed."""

from pathlib import Path

import pytest
import torch

from rsrefseg.checkpoints.model_file import load_model
from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.export.export import export_run
from rsrefseg.export.settings import ExportSettings, Target
from rsrefseg.model.model import RSRefSeg
from rsrefseg.runs.run import Run
from tests.support.exported import Exported


@pytest.fixture(autouse=True)
def _one_thread(one_thread: None) -> None:
    """Sums come out the same on every machine."""


@pytest.fixture(scope="session")
def bundle(exported: Exported) -> Bundle:
    return Bundle.open(exported.bundle)


@pytest.fixture(scope="session", params=Stage, ids=str)
def stage(request: pytest.FixtureRequest) -> Stage:
    """Every stage in turn."""
    return request.param


@pytest.fixture(scope="session")
def model(exported: Exported) -> RSRefSeg:
    return load_model(Run(exported.run).merged_path)


def _export(exported: Exported, folder: Path, settings: ExportSettings) -> Bundle:
    torch.set_num_threads(1)
    return Bundle.open(Path(export_run(exported.run, folder, settings).bundle))


@pytest.fixture(scope="session")
def half_bundle(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Half precision by the default plan."""
    return _export(exported, tmp_path_factory.mktemp("half"), ExportSettings(plan={}))


@pytest.fixture(scope="session")
def fused_bundle(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Attention nodes."""
    return _export(exported, tmp_path_factory.mktemp("fused"), ExportSettings(target=Target.ONNXRUNTIME_CUDA))


@pytest.fixture(scope="session")
def fused_half_bundle(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Attention nodes in half precision."""
    return _export(exported, tmp_path_factory.mktemp("fused"), ExportSettings({}, Target.ONNXRUNTIME_CUDA))


@pytest.fixture(scope="session")
def mixed_bundle(exported: Exported, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Another form of attention than the target's: Attention nodes with a bias, and none for the folded blocks."""
    settings = ExportSettings(None, Target.ONNXRUNTIME_CUDA, "windowed=additive,global=folded:2,mlp=2")
    return _export(exported, tmp_path_factory.mktemp("mixed"), settings)
