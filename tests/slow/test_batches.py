"""Batches that are killed, on this machine and on a local Ray, and what a batch costs."""

import math
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from rsrefseg.engines.batch import infer_batch
from rsrefseg.engines.infer import InferOptions
from rsrefseg.engines.job import Cluster
from tests.support import ROOT
from tests.support.batches import PHRASES, batch_job, write_scenes, written
from tests.support.commands import ENTRY, run_alone
from tests.support.exported import Exported
from tests.support.made_bundle import make_bundle


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a small hand-written bundle. Read-only."""
    return make_bundle(tmp_path_factory.mktemp("made") / "bundle").root


def count_results(out: Path) -> int:
    """Count JSON files while a batch writes: ``os.walk`` skips folders of unfinished files that vanish meanwhile."""
    return sum(name.endswith(".json") for _, _, names in os.walk(out) for name in names)


def wait_for_results(out: Path, count: int, process: subprocess.Popen[str]) -> None:
    while count_results(out) < count:
        assert process.poll() is None, "it ended before it was killed"
        time.sleep(0.005)


def test_kill_9_in_a_batch_of_50(made: Path, tmp_path: Path) -> None:
    scenes = write_scenes(tmp_path / "scenes", 50)
    batch_job(str(scenes), str(made), str(tmp_path / "whole"))
    out = tmp_path / "out"
    arguments = ["infer", str(scenes), *PHRASES, "--bundle", str(made), "--backend", "onnxruntime", "--out", str(out)]
    for killed_at in (7, 30):
        command = [sys.executable, "-P", "-c", ENTRY, *arguments, "--resume"]
        with subprocess.Popen(command, env={"PYTHONPATH": str(ROOT)}, text=True) as process:
            wait_for_results(out, killed_at, process)
            process.kill()
        assert count_results(out) < 50
    done = run_alone(*arguments, "--resume", "--json")
    assert done.returncode == 0, done.stderr
    assert written(out) == written(tmp_path / "whole")


def test_ray_with_a_killed_actor_writes_what_a_local_run_writes(made: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    scenes = write_scenes(tmp_path / "scenes", 30)
    batch_job(str(scenes), str(made), str(tmp_path / "whole"))
    out, killed = tmp_path / "out", []

    def kill_an_actor() -> None:
        while count_results(out) < 3:
            time.sleep(0.005)
        actors = [one for one in psutil.Process().children(recursive=True) if "MapWorker" in " ".join(one.cmdline())]
        for actor in actors[:1]:
            actor.kill()
            killed.append(actor.pid)

    killer = threading.Thread(target=kill_an_actor, daemon=True)
    killer.start()
    cluster = Cluster("local", actors=2, gpus=0)
    report = infer_batch([str(scenes)], PHRASES, made, out, InferOptions("onnxruntime"), cluster=cluster)
    killer.join()
    assert len(killed) == 1
    assert (report.failed, report.resumed) == ((), 0)
    assert written(out) == written(tmp_path / "whole")


def test_ten_images_take_less_than_twice_the_time_of_one(exported: Exported, tmp_path: Path) -> None:
    scenes = write_scenes(tmp_path / "scenes", 10)
    one = next(scenes.rglob("*.png"))
    fastest = {"one": math.inf, "ten": math.inf}
    for number in range(5):  # in turns, so that other work on the machine disturbs both
        for name, image in (("one", one), ("ten", scenes)):
            start = time.perf_counter()
            done = run_alone(
                "infer", image, "the red square", "--bundle", exported.bundle, "--out", tmp_path / f"{name}{number}"
            )
            fastest[name] = min(fastest[name], time.perf_counter() - start)
            assert done.returncode == 0, done.stderr
    print(fastest)
    assert fastest["ten"] < 2 * fastest["one"]
