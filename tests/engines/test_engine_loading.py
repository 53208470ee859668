"""Loading: all stages at a time on a CPU, each once whoever asks, and mapped weights that are given back."""

import mmap
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.errors import BundleError
from rsrefseg.engines.onnxruntime.engine import OnnxRuntimeEngine
from rsrefseg.engines.openvino import mapped_files
from rsrefseg.engines.openvino.mapped_files import mapped_addresses, release_pages, releasing_pages
from tests.support.made_bundle import make_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make_bundle(tmp_path / "bundle")


class Counting(OnnxRuntimeEngine):
    """Notes every load; those of all stages meet, or break."""

    def __init__(self, bundle: Bundle) -> None:
        super().__init__(bundle)
        self.loaded: list[Stage] = []
        self._all = threading.Barrier(len(Stage))

    def _load(self, stage: Stage) -> None:
        self._all.wait(timeout=20)
        super()._load(stage)
        self.loaded.append(stage)


class CountingInTurn(OnnxRuntimeEngine):
    """Notes how many loads ran at the same time at most."""

    loads_together = False
    running = most_running = 0

    def _load(self, stage: Stage) -> None:
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        super()._load(stage)
        self.running -= 1


def test_all_stages_load_at_the_same_time(bundle: Bundle) -> None:
    with Counting(bundle) as engine:
        engine.load()
        assert sorted(engine.loaded) == sorted(Stage)
        assert set(engine.load_ms) == set(Stage)


def test_stages_load_in_turn_where_the_engine_wants_it_so(bundle: Bundle) -> None:
    with CountingInTurn(bundle) as engine:
        engine.load()
        assert engine.most_running == 1
        assert set(engine.load_ms) == set(Stage)


def test_each_stage_is_loaded_once_whoever_asks(bundle: Bundle) -> None:
    with Counting(bundle) as engine, ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: engine.load(), range(4)))
        assert len(engine.loaded) == len(Stage)


def test_a_changed_file_is_refused_by_name_when_stages_load_together(bundle: Bundle) -> None:
    path = bundle.root / bundle.manifest.stages[Stage.SIGLIP_TEXT].data[0].name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with OnnxRuntimeEngine(bundle) as engine, pytest.raises(BundleError, match=path.name):
        engine.load()


def resident_kib(path: Path) -> int:
    """Of the file's mapping in this process."""
    lines = iter(Path("/proc/self/smaps").read_text().splitlines())
    for line in lines:
        if line.endswith(str(path)):
            return next(int(field.split()[1]) for field in lines if field.startswith("Rss:"))
    raise AssertionError("not mapped")


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells what is resident")
def test_mapped_pages_are_given_back_and_come_again(tmp_path: Path) -> None:
    path = tmp_path / "weights.data"
    content = bytes(range(256)) * 4096 * 4
    path.write_bytes(content)
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        assert mapped[:] == content
        before = resident_kib(path)
        assert before >= len(content) // 1024
        (addresses,) = mapped_addresses([path])
        assert len(addresses) == len(content)
        release_pages([addresses])
        assert resident_kib(path) < before / 10
        assert mapped[:] == content


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells what is resident")
def test_mapped_pages_are_given_back_while_they_are_read_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "weights.data"
    content = bytes(range(256)) * 4096 * 4
    path.write_bytes(content)
    released, kept = threading.Semaphore(0), release_pages

    def release_and_tell(addresses: frozenset[range]) -> None:
        kept(addresses)
        released.release()

    monkeypatch.setattr(mapped_files, "release_pages", release_and_tell)
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
        with releasing_pages(mapped_addresses([path])):
            assert mapped[:] == content
            while released.acquire(blocking=False):
                pass
            assert all(released.acquire(timeout=20) for _ in range(2))  # the second began after the read
            assert resident_kib(path) < len(content) // 10240
            assert mapped[:] == content
        assert resident_kib(path) < len(content) // 10240
        assert mapped[:] == content


def test_pages_are_given_back_no_longer_when_the_body_fails() -> None:
    before = set(threading.enumerate())
    with pytest.raises(BundleError), releasing_pages(frozenset()):
        raise BundleError("not to be read")
    assert set(threading.enumerate()) <= before


def test_a_mapping_that_can_be_written_to_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "weights.data"
    path.write_bytes(bytes(1 << 16))
    with path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
        mapped[:4] = b"mine"
        assert mapped_addresses([path]) == frozenset()


def test_a_file_that_nobody_mapped_is_nowhere(tmp_path: Path) -> None:
    assert mapped_addresses([tmp_path / "nothing"]) == frozenset()
