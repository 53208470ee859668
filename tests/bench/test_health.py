"""Machine description and disturbances, from invented sensor values."""

import os
import sys
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import psutil
import pytest

from rsrefseg.bench.system import gpu, machine
from rsrefseg.bench.system.health import Health, HealthSample, Watch
from rsrefseg.bench.system.machine import CoreTimes, busy_notes, core_times, memory_notes, this_machine

Core = namedtuple("Core", "user nice system idle iowait irq softirq steal guest guest_nice")  # as psutil has on Linux
THROTTLE_COUNT = "sys/devices/system/cpu/cpu0/thermal_throttle/core_throttle_count"


def write(root: Path, name: str, content: str | float) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{content}\n")


def set_cores(monkeypatch: pytest.MonkeyPatch, *cores: Core) -> None:
    monkeypatch.setattr(psutil, "cpu_times", lambda percpu: list(cores))


def bind(monkeypatch: pytest.MonkeyPatch, *cores: int) -> None:
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda process: list(cores))


def core(user: float = 0, idle: float = 0, stolen: float = 0, guest: float = 0) -> Core:
    return Core(user, 0, 0, idle, 0, 0, 0, stolen, guest, 0)


def test_this_machine_is_described() -> None:
    found = this_machine().to_dict()
    assert found["cpu"]
    assert 1 <= found["usable_cores"] <= found["cores"]
    assert found["memory_mib"] > 100
    assert found["versions"].keys() >= {"numpy", "onnxruntime"}
    times = core_times()
    assert 0 <= times.stolen <= times.total
    assert times.own > 0
    assert isinstance(Watch().sample(), HealthSample)


def test_only_the_cores_of_this_process_count_and_guest_time_counts_once(monkeypatch: pytest.MonkeyPatch) -> None:
    set_cores(monkeypatch, core(user=900), core(user=10, idle=5, stolen=2, guest=9), core(user=900))
    bind(monkeypatch, 1)
    assert core_times()._replace(own=0) == CoreTimes(idle=5, stolen=2, own=0, total=17)
    bind(monkeypatch, 17)  # the host's number, in a container that shows three cores
    assert core_times().total == 1817


def test_shares_are_of_the_time_since_the_last_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    bind(monkeypatch, 0)
    set_cores(monkeypatch, core(user=1000, idle=1000, stolen=1000))
    watch = Watch()
    set_cores(monkeypatch, core(user=1000, idle=1900, stolen=1100))
    first = watch.sample()
    assert (first.stolen_share, first.others_share) == (0.1, 0)
    set_cores(monkeypatch, core(user=1500, idle=2400, stolen=1100))
    second = watch.sample()
    assert second.stolen_share == 0
    assert second.others_share == pytest.approx(0.5, abs=0.01)  # less what this test used itself
    set_cores(monkeypatch, core(user=1500.01, idle=2400, stolen=1100.01))
    assert watch.sample().stolen_share is None, "two ticks are too few"


def test_own_threads_that_still_spin_are_not_other_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    readings = iter([CoreTimes(idle=9.0, stolen=0, own=0.5, total=10.0), CoreTimes(9.7, 0, 0.7, 11.0)])
    monkeypatch.setattr(machine, "core_times", lambda: next(readings))
    monkeypatch.setattr(machine, "_WATCH_S", 0.0)
    assert machine.others_busy_share() == pytest.approx(0.10)
    assert busy_notes([0.02, None]) == busy_notes([None]) == memory_notes([1.0, None, 2.0]) == []


def test_throttling_and_quotas_count_from_the_start_of_the_watch(tmp_path: Path) -> None:
    scope = "sys/fs/cgroup/user.slice/one.scope/cpu.stat"
    write(tmp_path, "proc/self/cgroup", "4:cpu,cpuacct:/docker\n0::/user.slice/one.scope")
    write(tmp_path, THROTTLE_COUNT, 10)
    write(tmp_path, scope, "usage_usec 5\nthrottled_usec 9000")
    write(tmp_path, "sys/fs/cgroup/user.slice/other.scope/cpu.stat", "throttled_usec 0")
    watch = Watch(tmp_path)
    write(tmp_path, THROTTLE_COUNT, 12)
    write(tmp_path, scope, "usage_usec 5\nthrottled_usec 12000")
    write(tmp_path, "sys/fs/cgroup/user.slice/cpu.stat", "throttled_usec 2500")
    write(tmp_path, "sys/fs/cgroup/user.slice/other.scope/cpu.stat", "throttled_usec 99000")
    sample = watch.sample()
    assert (sample.throttle_events, sample.quota_held_ms) == (2, 5.5)
    watch.begin()
    assert watch.summary().samples == ()
    assert watch.sample().throttle_events == 0


def test_a_machine_that_reports_nothing_has_no_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "cpu_freq", lambda percpu: [])
    monkeypatch.setattr(psutil, "sensors_temperatures", dict)
    set_cores(monkeypatch, core(idle=1))
    watch = Watch(tmp_path)
    assert watch.sample() == HealthSample()
    assert watch.summary().notes() == []
    assert watch.summary().to_dict()["ranges"] == {}


def test_the_hottest_working_sensor_of_the_processor_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    chips = {"nvme": [80.0], "k10temp": [61.5, 0.0, 4000.0], "coretemp": [55.0]}
    sensors = {name: [SimpleNamespace(current=value) for value in values] for name, values in chips.items()}
    monkeypatch.setattr(psutil, "sensors_temperatures", lambda: sensors)
    assert Watch().sample().hottest_c == 61.5


@pytest.mark.parametrize(
    ("samples", "fact"),
    [
        ([HealthSample(stolen_share=share) for share in (0.01, 0.07, 0.02)], "the hypervisor gave up to 7%"),
        ([HealthSample(others_share=0.25)], "other programs used up to 25%"),
        ([HealthSample(cpu_ghz=value) for value in (2.6, 2.5, 1.9, 2.6)], "from 2.6 to 1.9 GHz"),
        ([HealthSample(gpu_mhz=value) for value in (300, 1980, 1400)], "from 1980 to 1400 MHz"),
        ([HealthSample(throttle_events=count) for count in (0, 4)], "slowed itself down 4 times"),
        ([HealthSample(quota_held_ms=2500.0)], "waiting for 2.5 s"),
        ([HealthSample(hottest_c=60, gpu_c=97)], "97 degrees"),
        ([HealthSample(gpu_slowed_by=("its power limit",))] * 2, "the GPU was held down by its power limit"),
        ([HealthSample(cpu_ghz=value) for value in (0.8, 2.5, 2.6, 2.45)], None),
        ([HealthSample(stolen_share=0.01, others_share=0.05, throttle_events=0, quota_held_ms=3, hottest_c=70)], None),
        ([], None),
    ],
)
def test_a_disturbance_is_one_note_and_a_quiet_device_has_none(samples: list[HealthSample], fact: str | None) -> None:
    notes = Health(tuple(samples), seconds=60).notes()
    assert len(notes) == (fact is not None)
    assert (fact or "") in "".join(notes)


def test_the_document_has_ranges() -> None:
    samples = tuple(HealthSample(gpu_c=value, gpu_memory_mib=10) for value in (40.0, 70.0, 60.0, None))
    document, memory = Health(samples).to_dict(), {"min": 10, "median": 10, "max": 10}
    assert document["ranges"] == {"gpu_c": {"min": 40, "median": 60, "max": 70}, "gpu_memory_mib": memory}
    assert (document["samples"], document["gpu_slowed_by"], document["peak_gpu_memory_mib"]) == (4, [], 10)


unsupported = Mock(side_effect=RuntimeError)


@pytest.fixture
def nvml(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Double of ``pynvml`` on a machine whose second GPU is CUDA's first."""
    mine, other = (SimpleNamespace(pid=pid, usedGpuMemory=512 << 20) for pid in (os.getpid(), 1))
    double = SimpleNamespace(
        NVMLError=RuntimeError,
        NVML_CLOCK_SM=1,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByPciBusId={b"0000:41:00.0": "second"}.__getitem__,
        nvmlDeviceGetName=lambda device: f"GPU {device}",
        nvmlSystemGetDriverVersion=lambda: "580.95.05",
        nvmlDeviceGetClockInfo=lambda device, clock: 1980,
        nvmlDeviceGetTemperature=lambda device, sensor: 64,
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda device: 0x24,
        nvmlDeviceGetComputeRunningProcesses=lambda device: [other, mine],
    )
    monkeypatch.setitem(sys.modules, "pynvml", double)
    monkeypatch.setattr(gpu, "_cuda_bus_id", lambda: b"0000:41:00.0")
    monkeypatch.setattr(gpu, "_device", gpu._device.__wrapped__)  # without its cache
    return double


def test_the_gpu_that_cuda_uses_is_read_and_memory_is_that_of_this_process(nvml: SimpleNamespace) -> None:
    assert gpu.gpu_name() == "GPU second, driver 580.95.05"
    limits = ("its power limit", "its temperature limit (driver)")
    assert gpu.read_gpu() == gpu.GpuReading(gpu_mhz=1980, gpu_c=64, gpu_memory_mib=512, gpu_slowed_by=limits)
    nvml.nvmlDeviceGetCurrentClocksThrottleReasons = lambda device: 1
    assert gpu.read_gpu() == gpu.GpuReading(gpu_c=64, gpu_memory_mib=512), "an idle GPU's clock says nothing"


def test_what_a_gpu_does_not_support_is_unknown(nvml: SimpleNamespace) -> None:
    for name in [name for name in vars(nvml) if name.startswith("nvmlDeviceGet") and "Handle" not in name]:
        setattr(nvml, name, unsupported)
    assert gpu.read_gpu() == gpu.GpuReading()
    assert gpu.gpu_name() == "unknown, driver 580.95.05"


@pytest.mark.parametrize("lacking", ["a GPU", "the package", "the driver"])
def test_no_reading_without_gpu_or_driver(nvml: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, lacking: str) -> None:
    if lacking == "a GPU":
        monkeypatch.setattr(gpu, "_cuda_bus_id", lambda: None)
    elif lacking == "the package":
        monkeypatch.setitem(sys.modules, "pynvml", None)
    else:
        nvml.nvmlInit = unsupported
    assert (gpu.read_gpu(), gpu.gpu_name(), gpu.gpu_memory_used_mib()) == (gpu.GpuReading(), None, None)
