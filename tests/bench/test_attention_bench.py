"""SAM's blocks as `bench --attention` times them are the published block, in every form and precision."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from rsrefseg.bench.latency import attention_forms
from rsrefseg.bench.latency.attention_forms import GLOBAL, WINDOWED, Variant
from rsrefseg.bench.latency.block_runtimes import BlockRuntime, Loaded, block_runtimes
from rsrefseg.model.config import model_config
from tests.support.commands import assert_refused, run_here

CONFIG = model_config("tiny").sam
CPU = block_runtimes()[0]
# What a GPU's runtime is given, computed by the CPU's: a stand-in where there is no GPU.
GPU = BlockRuntime("a double of a GPU's", CPU.load, half=True, fused=True)


def test_a_gpu_is_given_half_islands_whole_and_in_parts_and_the_one_operator() -> None:
    variants = list(attention_forms._variants(CONFIG, GPU))
    assert all(variant.half for variant in variants)
    assert [variant.kind for variant in variants if variant.fused] == [WINDOWED, GLOBAL]
    assert Variant(GLOBAL, "folded", 1, half=True) in variants
    assert not any(variant.half or variant.fused for variant in attention_forms._variants(CONFIG, CPU))


@pytest.mark.parametrize(
    ("variant", "relative_l2"),
    [
        (Variant(WINDOWED, "folded", 1), 1e-6),
        (Variant(WINDOWED, "folded", 1, half=True), 2e-3),
        (Variant(GLOBAL, "additive", 1, half=True, fused=True), 2e-3),
    ],
    ids=str,
)
def test_a_block_computes_what_the_published_one_does(variant: Variant, relative_l2: float, tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(1, CONFIG.grid_size**2, CONFIG.embed_dim)).astype(np.float32)
    block, path = attention_forms._block(CONFIG, variant.kind), tmp_path / "block.onnx"
    wanted = attention_forms._torch_result(block, x, CONFIG.grid_size)
    module = attention_forms._with_attention(block, variant, CONFIG)
    attention_forms._export(module, path, x, variant.fused)
    loaded = CPU.load(path, module, x)
    loaded.run()
    assert np.linalg.norm(loaded.result() - wanted) <= relative_l2 * np.linalg.norm(wanted)
    graph = onnx.load(path).graph
    assert ("Attention" in {node.op_type for node in graph.node}) == variant.fused
    weights = {initializer.data_type for initializer in graph.initializer}
    assert (onnx.TensorProto.FLOAT16 in weights) == variant.half


def test_runs_of_a_millisecond_are_many_and_those_of_a_second_are_two(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, takes_s = 0.0, 0.001

    def run() -> None:
        nonlocal now_s
        now_s += takes_s

    result = np.ones(3, np.float32)
    runtime = BlockRuntime("a double", lambda path, module, x: Loaded(run, lambda: result))
    monkeypatch.setattr("rsrefseg.bench.latency.timing.time.perf_counter", lambda: now_s)
    fast = attention_forms._take_turn(runtime, Path(), None, result, result)
    assert len(fast) == pytest.approx(100, abs=1)
    assert now_s == pytest.approx(0.15, abs=0.01), "its first runs are not timed"
    takes_s = 1.0
    slow = attention_forms._take_turn(runtime, Path(), None, result, result)
    assert [found.clock_ms for found in slow] == pytest.approx([1e3, 1e3])


@pytest.mark.parametrize("names", ["nonsense", ","])
def test_a_runtime_that_is_not_here_is_refused(names: str, capsys: pytest.CaptureFixture[str]) -> None:
    ran = run_here(capsys, "bench", "--attention", "tiny", "--backends", names)
    assert_refused(ran, "--attention", f"'{names}'", "onnxruntime")
