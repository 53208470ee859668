"""Threads: as many as the process may use, from made control groups as Linux and containers have them."""

import os
from pathlib import Path

import pytest

from rsrefseg.bench.latency.runners import EngineRunner
from rsrefseg.bench.system.machine import this_machine
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.onnxruntime.engine import OnnxRuntimeEngine
from rsrefseg.engines.system.cores import cpu_groups, usable_cores
from tests.support.made_bundle import make_bundle


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 64 cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    return tmp_path


def write(root: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)


V2 = "0::/\n"
V1 = "11:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n0::/system\n"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 64),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/cpu.max": "max 100000\n"}, 64),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 2),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/cpu.max": "1000 100000\n"}, 1),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/cpu.max": "9900000 100000\n"}, 64),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/cpu.max": "what is this\n"}, 64),
        (
            {
                "proc/self/cgroup": "0::/user.slice/one.scope\n",
                "sys/fs/cgroup/user.slice/cpu.max": "300000 100000\n",
                "sys/fs/cgroup/user.slice/one.scope/cpu.max": "800000 100000\n",
            },
            3,
        ),
        ({"proc/self/cgroup": "0::/docker/abc\n", "sys/fs/cgroup/cpu.max": "400000 100000\n"}, 4),
        (
            {
                "proc/self/cgroup": "0::/../other\n",
                "sys/fs/cgroup/cpu.max": "400000 100000\n",
                "sys/fs/cgroup/other/cpu.max": "100000 100000\n",
            },
            4,
        ),
        ({"proc/self/cgroup": V2, "sys/fs/cgroup/cpu.max": f"1{'0' * 400} 1\n"}, 64),
        ({"proc/self/cgroup": "0::/a\0b\nhello\n", "sys/fs/cgroup/cpu.max": "400000 100000\n"}, 4),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_quota_us": "250000\n",
                "sys/fs/cgroup/cpu/docker/abc/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            64,
        ),
        (
            {
                "proc/self/cgroup": V1,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "500000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            5,
        ),
        (
            {
                "proc/self/cgroup": "3:cpuset:/\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "500000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            64,
        ),
    ],
)
def test_a_quota_of_any_kind_counts(root: Path, files: dict[str, str], cores: int) -> None:
    write(root, files)
    assert usable_cores(root) == cores


def test_a_process_bound_to_fewer_cores_uses_those(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(root, {"proc/self/cgroup": V2, "sys/fs/cgroup/cpu.max": "800000 100000\n"})
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3}, raising=False)
    assert usable_cores(root) == 1


def test_groups_are_told_from_the_processs_own_to_the_top(root: Path) -> None:
    write(root, {"proc/self/cgroup": V1})
    top = root / "sys/fs/cgroup"
    first_version = [top / "cpu/docker/abc", top / "cpu/docker", top / "cpu"]
    assert cpu_groups(root) == [*first_version, top / "system", top]


def test_on_this_machine_it_is_some() -> None:
    assert 1 <= usable_cores() <= (os.cpu_count() or 1)


def test_engines_and_runners_compute_with_what_a_quota_allows(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(root, {"proc/self/cgroup": V2, "sys/fs/cgroup/cpu.max": "200000 100000\n"})
    monkeypatch.setattr(usable_cores, "__defaults__", (root,))
    bundle = make_bundle(tmp_path / "bundle")
    with OnnxRuntimeEngine(bundle) as engine:
        assert engine._loaded(Stage.SAM_DECODER).get_session_options().intra_op_num_threads == 2
        assert EngineRunner(engine).threads == 2
    assert this_machine().usable_cores == 2
