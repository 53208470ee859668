"""Benchmarks without stubs: new processes, compiled PyTorch, naive graphs, the command."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from rsrefseg.bench.latency.correctness import check
from rsrefseg.bench.latency.runners import make_runner, open_runners
from rsrefseg.bench.latency.scenarios import FIRST_PHRASE, SCENARIOS, workload_of
from rsrefseg.bench.latency.startup import start
from rsrefseg.bench.system.machine import peak_memory_mib
from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.bundle.reference import load_reference
from rsrefseg.engines.errors import RSRefSegError
from tests.support.commands import run_alone
from tests.support.exported import Exported


@pytest.fixture(scope="module")
def bundle(exported: Exported) -> Bundle:
    return Bundle.open(exported.bundle)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The user's cache folder."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        yield folder / "rsrefseg" / "naive"


def test_the_command_reports_ratios_errors_and_rooflines(exported: Exported, tmp_path: Path) -> None:
    options = ("--bundle", exported.bundle, "--run", exported.run, "--rounds", "5", "--report", "report", "--json")
    done = run_alone("bench", *options, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document == json.loads((tmp_path / "report" / "report.json").read_text())
    assert [runner["name"] for runner in document["runners"]] == ["torch", "onnxruntime"]
    for runner in document["runners"]:
        startup = runner["startup"]
        assert startup["error"] is None
        assert 0 < startup["load_least_ms"] <= startup["load_ms"] <= startup["load_most_ms"]
        assert min(startup[name] for name in ("import_ms", "open_ms", "first_answer_ms", "peak_memory_mib")) > 0
    for one in document["measurements"]:
        if one["roofline"] is not None:
            share = one["roofline"]["least_ms"] / min(one["times_ms"])
            assert share < 1.2, "nothing is faster than the machine, but for the noise of both measurements"


def test_memory_is_that_of_the_runner_alone(bundle: Bundle) -> None:
    ballast = np.ones(400 * 2**20, np.uint8)
    own_mib = peak_memory_mib()
    startup = start("onnxruntime", bundle, None)
    assert own_mib is not None
    assert startup.peak_memory_mib is not None
    assert own_mib > ballast.nbytes / 2**20 > startup.peak_memory_mib


def test_a_process_that_fails_is_reported_and_one_that_only_loads_predicts_nothing(bundle: Bundle) -> None:
    failed = start("nonsense", bundle, None)
    assert "unknown backend 'nonsense'" in (failed.error or "")
    loaded = start("onnxruntime", bundle, None, predict=False)
    assert (loaded.error, loaded.first_answer_ms) == (None, None)
    assert loaded.load_ms is not None


@pytest.mark.parametrize("name", ["torch-compile", "onnx-naive"])
def test_baselines_compute_the_reference(name: str, exported: Exported, bundle: Bundle, cache: Path) -> None:
    (runner,), _ = open_runners([name], bundle, exported.run)
    runner.load()
    # torch.compile compiles for each number of phrases.
    found = check(runner, (FIRST_PHRASE,) if name == "torch-compile" else SCENARIOS, load_reference(bundle)[0])
    runner.close()
    for one in found.values():
        assert one.failures == ()


def test_naive_graphs_are_exported_once_and_a_failure_leaves_none(
    exported: Exported, bundle: Bundle, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = make_runner("onnx-naive", bundle, exported.run)
    runner.open()
    (folder,) = cache.iterdir()
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert {f"{stage}.onnx" for stage in Stage} <= {path.name for path in before}
    runner.open()
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr("torch.onnx.export", lambda *given, **named: 1 / 0)
    with pytest.raises(RSRefSegError, match=r"^onnx-naive: exporting 'siglip_vision' failed"):
        make_runner("onnx-naive", bundle, exported.run).open()
    assert list((tmp_path / "rsrefseg" / "naive").iterdir()) == []


def test_a_compiler_that_fails_is_reported_in_one_line(exported: Exported, bundle: Bundle) -> None:
    torch._dynamo.reset()
    (runner,), _ = open_runners(["torch-compile"], bundle, exported.run)
    runner.load()
    changes = {"cpp.cxx": (None, "/no/such/compiler"), "force_disable_caches": True}
    with (
        torch._inductor.config.patch(changes),
        pytest.raises(RSRefSegError, match=r"^torch-compile: stage 'siglip_vision' failed \(.*C\+\+ compiler"),
    ):
        runner.encode(workload_of(load_reference(bundle)).image)
    runner.close()
    torch._dynamo.reset()
