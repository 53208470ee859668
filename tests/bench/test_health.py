"""What the device tells during a bench, from made ``/proc``, ``/sys`` and a made ``nvidia-smi`` as Linux has them."""

import json
import os
from pathlib import Path

import pytest

from rsrefseg.bench.system.gpu_report import this_gpu
from rsrefseg.bench.system.health import HealthSample, HealthSummary, Watch
from rsrefseg.bench.system.machine import this_machine
from rsrefseg.bench.system.nvidia_smi import GpuReading, gpu_memory_used_mib, read_gpu
from rsrefseg.bench.system.sensors import (
    Ticks,
    board_gpu_clock_mhz,
    board_power_w,
    cpu_clock_ghz,
    cpu_ticks,
    hottest_c,
    own_ticks,
    quota_held_ms,
    throttle_count,
)

CPU0 = "sys/devices/system/cpu/cpu0"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Of a machine that tells nothing yet."""
    return tmp_path / "root"


def put(root: Path, **files: str | float) -> None:
    """Files by path, with ``__`` for ``/``."""
    for name, content in files.items():
        write(root, name.replace("__", "/"), content)


def write(root: Path, name: str, content: str | float) -> None:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{content}\n")


@pytest.fixture
def bound(monkeypatch: pytest.MonkeyPatch) -> None:
    """To the cores 1 and 3 of a machine, as by ``taskset``."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {1, 3}, raising=False)


def set_ticks(root: Path, user: int, idle: int, stolen: int, elsewhere_user: int = 0, elsewhere_idle: int = 0) -> None:
    """Of core 1, which ``bound`` binds to beside core 3, that rests, and core 0."""
    cores = (
        f"0 {elsewhere_user} 0 0 {elsewhere_idle} 0 0 0 0 5 0",
        f"1 {user} 0 0 {idle} 0 0 0 {stolen} 77 0",
        "3 0 0 0 0 0 0 0 0 0 0",
    )
    put(root, proc__stat="\n".join(["cpu  1 1 1 1 1 1 1 1 1 1", *(f"cpu{core}" for core in cores), "intr 5 0"]))


@pytest.fixture
def double(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A double of ``nvidia-smi`` that stands before any real one and answers with the file ``answer``."""
    folder = tmp_path / "double"
    folder.mkdir()
    tool = folder / "nvidia-smi"
    tool.write_text(f'#!/bin/sh\necho "$*" >> {folder}/asked\n. {folder}/answer\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return folder


def test_a_machine_that_tells_nothing_is_no_error(root: Path) -> None:
    watch = Watch(root, gpu=lambda: None)
    assert watch.sample() == HealthSample()
    assert watch.summary().notes() == []
    assert watch.summary().as_dict()["ranges"] == {}


def test_this_machine_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = cpu_ticks()
    assert ticks is not None
    ours, rest = ticks
    assert 0 <= ours.stolen <= ours.total
    assert rest.idle <= rest.total
    assert own_ticks() > 0
    assert isinstance(Watch().sample(), HealthSample)


@pytest.mark.usefixtures("bound")
def test_guest_time_is_not_counted_twice_and_only_cores_of_this_program_are_its(root: Path) -> None:
    set_ticks(root, user=100, idle=50, stolen=7, elsewhere_user=30, elsewhere_idle=40)
    assert cpu_ticks(root) == (Ticks(idle=50, stolen=7, total=157), Ticks(idle=40, stolen=0, total=70))


def test_clocks_come_from_the_governor_or_else_from_cpuinfo(root: Path) -> None:
    put(root, proc__cpuinfo="processor : 0\ncpu MHz\t\t: 2596.14\ncpu MHz\t\t: 1900.0")
    assert cpu_clock_ghz(root) == pytest.approx(2.59614)
    for core, khz in enumerate((800_000, 3_100_000)):
        write(root, f"sys/devices/system/cpu/cpu{core}/cpufreq/scaling_cur_freq", khz)
    assert cpu_clock_ghz(root) == pytest.approx(3.1)


def test_the_hottest_sensor_counts_if_it_is_the_processors_and_on(root: Path) -> None:
    for number, (name, content) in enumerate([("cpu", 61_500), ("off", 0), ("broken", "err"), ("mad", 4_000_000)]):
        write(root, f"sys/class/thermal/thermal_zone{number}/temp", content)
        write(root, f"sys/class/thermal/thermal_zone{number}/type", name)
    put(root, sys__class__hwmon__hwmon0__name="nvme", sys__class__hwmon__hwmon0__temp1_input=80_000)
    assert hottest_c(root) == pytest.approx(61.5)
    put(root, sys__class__hwmon__hwmon1__name="k10temp", sys__class__hwmon__hwmon1__temp1_input=72_000)
    assert hottest_c(root) == pytest.approx(72)


def test_a_jetson_tells_its_gpus_clock_its_power_and_its_current_limits(root: Path) -> None:
    write(root, "sys/class/devfreq/17000000.gpu/cur_freq", 918_000_000)
    chip = "sys/class/hwmon/hwmon1"
    for name, content in {
        "in1_label": "VDD_IN",
        "in1_input": 5000,
        "curr1_input": 2400,
        "in2_label": "VDD_SOC",
    }.items():
        write(root, f"{chip}/{name}", content)
    write(root, "sys/class/hwmon/hwmon2/oc1_event_cnt", 3)
    assert board_gpu_clock_mhz(root) == pytest.approx(918)
    assert board_power_w(root) == pytest.approx(12)
    assert throttle_count(root) == 3
    sample = Watch(root, gpu=lambda: None).sample()
    assert (sample.gpu_mhz, sample.power_w) == (918, 12)


@pytest.mark.usefixtures("bound")
def test_cores_that_a_container_numbers_anew_are_all_this_programs(root: Path) -> None:
    put(root, proc__stat="cpu 1 1 1 1 1 1 1 1\ncpu0 10 0 0 20 0 0 0 0\ncpu1 1 0 0 2 0 0 0 0\nintr 5")
    assert cpu_ticks(root) == (Ticks(idle=22, stolen=0, total=33), Ticks(idle=0, stolen=0, total=0))


@pytest.mark.usefixtures("bound")
def test_what_runs_on_other_cores_is_told_apart(root: Path) -> None:
    set_ticks(root, user=0, idle=0, stolen=1)
    watch = Watch(root, gpu=lambda: None)
    set_ticks(root, user=0, idle=1000, stolen=1, elsewhere_user=450, elsewhere_idle=550)
    sample = watch.sample()
    assert (sample.others_share, sample.elsewhere_share) == (0.0, pytest.approx(0.45))


@pytest.mark.usefixtures("bound")
def test_a_share_is_of_the_time_since_the_last_look(root: Path) -> None:
    set_ticks(root, user=1000, idle=1000, stolen=1000)
    watch = Watch(root, gpu=lambda: None)
    set_ticks(root, user=1000, idle=1900, stolen=1100)
    assert watch.sample().stolen_share == pytest.approx(0.1)
    set_ticks(root, user=1500, idle=2400, stolen=1100)
    second = watch.sample()
    assert second.stolen_share == 0
    # 500 of 1000 ticks, less the few that this very test computed meanwhile.
    assert second.others_share == pytest.approx(0.5, abs=0.1)
    set_ticks(root, user=1501, idle=2400, stolen=1101)
    assert watch.sample().stolen_share is None, "of two ticks nothing follows"


def test_a_stolen_share_is_a_note_that_says_what_still_holds(root: Path) -> None:
    summary = HealthSummary(tuple(HealthSample(stolen_share=share) for share in (0.01, 0.07, 0.02)))
    (note,) = summary.notes()
    assert note.startswith("the hypervisor took up to 7% of the cores (median 2%)")


@pytest.mark.parametrize(
    ("samples", "told"),
    [
        ([HealthSample(cpu_ghz=value) for value in (2.6, 2.5, 1.9, 2.6)], "CPU clocks fell from 2.6 to 1.9 GHz"),
        ([HealthSample(gpu_mhz=value) for value in (300, 1980, 1400)], "GPU clocks fell from 1980 to 1400 MHz"),
        ([HealthSample(others_share=0.25)], "other programs used up to 25% of the cores"),
        ([HealthSample(elsewhere_share=0.45)], "beyond those of this program were used up to 45% (median 45%)"),
        ([HealthSample(throttle_events=count) for count in (0, 4)], "slowed itself down 4 times"),
        ([HealthSample(quota_held_ms=2500.0)], "CPU quota made its threads wait 2.5 s"),
        ([HealthSample(hottest_c=60, gpu_c=97)], "97 degrees"),
    ],
)
def test_what_slows_a_device_is_told(samples: list[HealthSample], told: str) -> None:
    (note,) = HealthSummary(tuple(samples)).notes()
    assert told in note


@pytest.mark.parametrize(
    "samples",
    [
        [HealthSample(cpu_ghz=value) for value in (0.8, 2.5, 2.6)],
        [HealthSample(cpu_ghz=value) for value in (2.6, 2.5, 2.45)],
        [HealthSample(stolen_share=0.01, others_share=0.05, throttle_events=0, hottest_c=70)],
        [],
    ],
)
def test_a_device_that_wakes_up_or_is_quiet_is_not_blamed(samples: list[HealthSample]) -> None:
    assert HealthSummary(tuple(samples)).notes() == []


def test_only_what_happens_while_watching_counts(root: Path) -> None:
    write(root, f"{CPU0}/thermal_throttle/core_throttle_count", 10)
    write(root, "proc/self/cgroup", "0::/")
    write(root, "sys/fs/cgroup/cpu.stat", "usage_usec 5\nthrottled_usec 9000")
    assert quota_held_ms(root) == 9
    watch = Watch(root, gpu=lambda: GpuReading(memory_used_mib=500))
    write(root, f"{CPU0}/thermal_throttle/core_throttle_count", 12)
    write(root, "sys/fs/cgroup/cpu.stat", "usage_usec 5\nthrottled_usec 12000")
    sample = watch.sample()
    assert (sample.throttle_events, sample.quota_held_ms, sample.gpu_memory_mib) == (2, 3, 0)


def test_what_quotas_held_back_is_told_by_the_groups_of_this_process(root: Path) -> None:
    assert quota_held_ms(root) is None
    write(root, "proc/self/cgroup", "0::/user.slice/one.scope")
    write(root, "sys/fs/cgroup/cpu.stat", "usage_usec 5")
    assert quota_held_ms(root) is None
    write(root, "sys/fs/cgroup/user.slice/cpu.stat", "throttled_usec 2000")
    write(root, "sys/fs/cgroup/user.slice/one.scope/cpu.stat", "throttled_usec 1500")
    write(root, "sys/fs/cgroup/user.slice/other.scope/cpu.stat", "throttled_usec 99000")
    assert quota_held_ms(root) == 3.5


def test_a_watch_goes_on_with_what_an_earlier_process_saw(root: Path) -> None:
    throttled = f"{CPU0}/thermal_throttle/core_throttle_count"
    write(root, throttled, 10)
    first = Watch(root, gpu=lambda: None)
    write(root, throttled, 12)
    first.sample()
    earlier = HealthSummary.of_entries([json.loads(json.dumps(first.entry()))])
    assert earlier.samples == first.summary().samples
    write(root, throttled, 100)
    second = Watch(root, gpu=lambda: None, earlier=earlier)
    write(root, throttled, 103)
    assert second.sample().throttle_events == 5, "what happened between the processes is nobody's"
    assert [sample.throttle_events for sample in second.summary().samples] == [2, 5]
    assert second.summary().seconds >= earlier.seconds


def test_the_summary_holds_the_least_the_middle_and_the_most() -> None:
    temperatures = (40.0, 70.0, 60.0, None)
    summary = HealthSummary(tuple(HealthSample(gpu_c=value, gpu_memory_mib=10) for value in temperatures), ("heat",))
    assert summary.as_dict() == {
        "samples": 4,
        "ranges": {
            "gpu_c": {"min": 40, "median": 60, "max": 70},
            "gpu_memory_mib": {"min": 10, "median": 10, "max": 10},
        },
        "gpu_slowed_by": ["heat"],
        "peak_gpu_memory_mib": 10,
    }


def test_a_gpu_is_read_through_the_drivers_tool(double: Path) -> None:
    (double / "answer").write_text("echo '1980, 2619, 64, 412.55, 20480, 0x0000000000000024'\n")
    assert read_gpu() == GpuReading(
        1980, 2619, 64, 412.55, 20480, ("its power limit", "its temperature limit (driver)")
    )
    summary = HealthSummary((HealthSample(gpu_mhz=1980),), ("its power limit",))
    assert summary.notes() == ["the GPU was held down by its power limit"]


def test_a_machine_is_told_with_its_gpu(double: Path) -> None:
    (double / "answer").write_text("echo 'NVIDIA H100 80GB HBM3, 580.95.05'\n")
    assert this_machine().as_dict()["gpu"] == "NVIDIA H100 80GB HBM3, driver 580.95.05"
    (double / "answer").write_text("echo 'NVIDIA-SMI has failed'; exit 9\n")
    assert this_machine().as_dict()["gpu"] is None


def test_the_clocks_of_an_idle_gpu_say_nothing(double: Path) -> None:
    (double / "answer").write_text("echo '345, 1593, 31, 68.20, 4, 0x0000000000000001'\n")
    assert read_gpu() == GpuReading(None, None, 31, 68.2, 4, ())


def test_an_older_driver_is_asked_in_its_own_words(double: Path) -> None:
    (double / "answer").write_text(
        'case "$*" in *clocks_event_reasons*) echo "Field is not a valid field to query."; exit 2;; esac\n'
        "echo '1530, 877, 55, 250.1, 812, 0x0000000000000008'\n"
    )
    reading = read_gpu()
    assert reading is not None
    assert reading.slowed_by == ("a hardware slowdown",)


def test_what_a_gpu_does_not_support_is_unknown(double: Path) -> None:
    (double / "answer").write_text("echo '[N/A], [Not Supported], 48, [N/A], [N/A], [N/A]'\n")
    assert read_gpu() == GpuReading(temperature_c=48)
    assert gpu_memory_used_mib() is None


def test_a_tool_that_fails_is_not_asked_again(double: Path, root: Path) -> None:
    (double / "answer").write_text("echo 'NVIDIA-SMI has failed'; exit 9\n")
    watch = Watch(root)
    asked = (double / "asked").read_text()
    watch.sample()
    watch.sample()
    assert (double / "asked").read_text() == asked
    assert this_gpu() is None


@pytest.mark.parametrize(
    ("visible", "asked"), [("", "--id=0 "), ("2,3", "--id=2 "), ("GPU-1f,0", "--id=GPU-1f "), ("MIG-9", "--id=0 ")]
)
def test_the_gpu_that_programs_see_is_asked(
    double: Path, monkeypatch: pytest.MonkeyPatch, visible: str, asked: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    (double / "answer").write_text("echo 812\n")
    assert gpu_memory_used_mib() == 812
    assert (double / "asked").read_text().startswith(asked)


def test_peak_memory_is_what_was_used_beyond_what_was_taken_before(double: Path, root: Path) -> None:
    answers = iter((500.0, 2600.0, 1800.0))
    watch = Watch(root, gpu=lambda: GpuReading(memory_used_mib=next(answers)))
    watch.sample()
    watch.sample()
    assert watch.summary().peak_gpu_memory_mib == 2100
