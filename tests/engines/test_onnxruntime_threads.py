"""The stages' threads do not stand in each other's way."""

from pathlib import Path

import pytest

from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.onnxruntime.engine import OnnxRuntimeEngine
from tests.support.made_bundle import make_bundle


@pytest.mark.parametrize("stage", Stage)
def test_threads_stop_spinning_when_a_stage_is_done(tmp_path: Path, stage: Stage) -> None:
    # Threads that spin on take the cores from the next stage: on two cores that made every stage five times slower.
    with OnnxRuntimeEngine(make_bundle(tmp_path / "bundle")) as engine:
        engine.load(stage)
        options = engine._sessions[stage].get_session_options()
        assert options.get_session_config_entry("session.force_spinning_stop") == "1"
