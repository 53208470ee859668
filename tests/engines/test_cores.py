"""Threads: as many as the process may use, from made control groups as Linux and containers have them."""

import os
from pathlib import Path

import pytest

from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.onnxruntime.engine import OnnxRuntimeEngine
from rsrefseg.engines.system.cores import int8_instructions, usable_cores


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine of 64 cores."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(64)), raising=False)
    return tmp_path


def write(root: Path, group: str, **quotas: str) -> None:
    """The process is in ``group``; ``quotas`` are those of groups, by the last part of their path, ``top`` the top."""
    folders = {"top": ".", "a": "a", "b": "a/b", "other": "other"}
    files = {f"sys/fs/cgroup/{folders[name]}/cpu.max": text for name, text in quotas.items()}
    for path, text in {"proc/self/cgroup": f"0::{group}\n", **files}.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)


@pytest.mark.parametrize(
    ("group", "quotas", "cores"),
    [
        ("/", {}, 64),
        ("/", {"top": "max 100000\n"}, 64),
        ("/", {"top": "200000 100000\n"}, 2),
        ("/", {"top": "150000 100000\n"}, 2),
        ("/", {"top": "1000 100000\n"}, 1),
        ("/", {"top": "9900000 100000\n"}, 64),
        ("/", {"top": "what is this\n"}, 64),
        ("/", {"top": f"1{'0' * 400} 1\n"}, 64),
        ("/a/b", {"a": "300000 100000\n", "b": "800000 100000\n"}, 3),
        ("/docker/hidden", {"top": "400000 100000\n"}, 4),
        ("/../other", {"top": "400000 100000\n", "other": "100000 100000\n"}, 4),
        ("/a\0b", {"top": "400000 100000\n"}, 4),
    ],
)
def test_a_quota_of_any_group_counts(root: Path, group: str, quotas: dict[str, str], cores: int) -> None:
    assert usable_cores(root) == 64
    write(root, group, **quotas)
    assert usable_cores(root) == cores


def test_a_process_bound_to_fewer_cores_uses_those(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(root, "/", top="800000 100000\n")
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3}, raising=False)
    assert usable_cores(root) == 1


def test_engines_compute_with_what_a_quota_allows(root: Path, bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    write(root, "/", top="200000 100000\n")
    monkeypatch.setattr(usable_cores, "__defaults__", (root,))
    with OnnxRuntimeEngine(bundle) as engine:
        assert engine._loaded(Stage.SAM_DECODER).get_session_options().intra_op_num_threads == 2


@pytest.mark.parametrize(
    ("flags", "name"),
    [
        ("fpu avx2 avx512_vnni amx_int8", "AMX"),
        ("fpu avx2 avx512_vnni", "AVX-512 VNNI"),
        ("fpu avx2 avx_vnni", "AVX-VNNI"),
        ("fp asimd asimddp", "DotProd"),
        ("fpu avx2", ""),
    ],
)
def test_the_processor_says_whether_it_has_int8(tmp_path: Path, flags: str, name: str) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text(f"processor : 0\nflags\t\t: {flags}\n")
    assert int8_instructions(tmp_path) == name
    assert int8_instructions(tmp_path / "elsewhere") is None
