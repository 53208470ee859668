"""Peaks that this machine reaches and does not exceed."""

import json
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from rsrefseg.bench.system.peaks import MATMUL, Peaks, measure_peaks


def test_the_peaks_of_one_core_are_plausible() -> None:
    peaks = measure_peaks(1)
    assert 1e9 < peaks.flops_per_s["fp32"] < 1e12
    assert peaks.bandwidth_bytes_per_s is not None
    assert 1e8 < peaks.bandwidth_bytes_per_s < 1e12
    assert peaks.threads == 1
    assert peaks.cores_used is not None
    assert peaks.cores_used < 1.1
    assert Peaks(**json.loads(json.dumps(peaks.to_dict()))) == peaks


def test_peaks_need_no_torch_and_the_folder_a_user_stands_in_shadows_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('shadowed')")
    monkeypatch.chdir(tmp_path)
    site = tmp_path / "site"
    site.mkdir()
    code = (
        "import importlib.util as u; f = u.find_spec; u.find_spec = lambda n, p=None: None if n == 'torch' else f(n, p)"
    )
    (site / "sitecustomize.py").write_text(f"{code}\nimport sys; sys.modules['torch'] = None\n")
    monkeypatch.syspath_prepend(str(site))
    found = measure_peaks(1)
    assert found.flops_per_s.keys() == {"fp32"}
    assert "torch" not in found.how
    missing = measure_peaks(1, "cuda")
    assert (missing.flops_per_s, missing.bandwidth_bytes_per_s) == ({}, None)
    assert "torch" in missing.how


def test_the_product_graph_is_what_onnx_writes() -> None:
    sizes = {"a": ["m", "k"], "b": ["k", "n"], "c": ["m", "n"]}
    tensors = [helper.make_tensor_value_info(name, TensorProto.FLOAT, dims) for name, dims in sizes.items()]
    graph = helper.make_graph([helper.make_node("MatMul", ["a", "b"], ["c"])], "g", tensors[:2], tensors[2:])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8, producer_name="")
    assert model.SerializeToString() == MATMUL
    onnx.checker.check_model(model)


def test_peaks_of_a_busy_machine_or_an_unknown_device_have_a_note() -> None:
    (note,) = Peaks("cpu", {"fp32": 1e11}, 1e10, "numpy", threads=4, cores_used=2.5).notes()
    assert "4 threads had only 2.5 cores" in note
    assert Peaks("cpu", {"fp32": 1e11}, 1e10, "numpy", threads=4, cores_used=3.9).notes() == []
    (note,) = measure_peaks(1, "intel-gpu").notes()
    assert "no roofline for intel-gpu" in note
