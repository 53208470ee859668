"""What the tests of TensorRT share: a cache folder of their own, the double in TensorRT's place, a made bundle."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.bundle.manifest import AttentionRecord
from rsrefseg.engines.tensorrt.command import BuildRequest, run_build
from rsrefseg.engines.tensorrt.store import BuildReport
from tests.support.doubles.tensorrt_double import State, doubled
from tests.support.made_bundle import change_stage, make_bundle


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "rsrefseg"


@pytest.fixture
def trt(cache: Path) -> Iterator[State]:
    with doubled() as state:
        yield state


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A bundle that was exported for TensorRT."""
    root = make_bundle(tmp_path / "bundle").root
    change_stage(root, Stage.SAM_ENCODER, attention=AttentionRecord("additive", "padded", 1, "tensorrt", "by hand"))
    return root


def build(folder: Path, stages: str | None = None, **options: Any) -> BuildReport:
    """Build the engines of a bundle, as ``rsrefseg build`` does."""
    report = run_build(BuildRequest(folder, stages, **options))
    assert isinstance(report, BuildReport)
    return report
