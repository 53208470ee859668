"""Duration of commands that start cold."""

import time
from pathlib import Path

import pytest

from tests.support.commands import run_alone
from tests.support.exported import Exported
from tests.support.places import beside_run


@pytest.mark.parametrize(
    ("arguments", "seconds"), [(["--help"], 0.5), (["infer", "scene.jpg", "the red box"], 2.0)], ids=["help", "infer"]
)
def test_a_command_is_quick_from_a_cold_start(
    arguments: list[str], seconds: float, exported: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Return the fastest of several runs."""
    beside_run(exported, tmp_path, monkeypatch)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        done = run_alone(*arguments)
        times.append(time.perf_counter() - start)
        assert done.returncode == 0, done.stderr
    assert min(times) <= seconds
