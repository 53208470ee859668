"""Digests of large files are remembered, and never believed of a file that has changed."""

import os
import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.errors import BundleError
from rsrefseg.engines.system import digests
from rsrefseg.engines.system.files import sha256_file


@pytest.fixture(autouse=True)
def reads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """The files that are read for a digest; every file counts as large and as written long ago."""
    found: list[Path] = []

    def read(path: Path) -> str:
        found.append(path)
        return sha256_file(path)

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "_LARGE_BYTES", 0)
    monkeypatch.setattr(digests, "_SETTLED_S", -60.0)
    monkeypatch.setattr(digests, "sha256_file", read)
    return found


def test_a_file_is_read_once(tmp_path: Path, reads: list[Path]) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    assert digests.sha256_of(path) == digests.sha256_of(path) == sha256_file(path)
    assert reads == [path]


def test_a_changed_file_is_read_again(tmp_path: Path, reads: list[Path]) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    before, state = digests.sha256_of(path), path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))  # as `cp -p` does
    assert digests.sha256_of(path) == sha256_file(path) != before
    path.rename(tmp_path / "moved")
    assert digests.sha256_of(tmp_path / "moved") == sha256_file(tmp_path / "moved")
    assert len(reads) == 3


def test_a_file_that_was_just_written_is_not_remembered(
    tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "_SETTLED_S", 60.0)
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    assert digests.sha256_of(path) == digests.sha256_of(path)
    assert len(reads) == 2


def test_the_time_of_a_long_read_does_not_settle_a_file(
    tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(digests, "_SETTLED_S", 60.0)
    clock, read = [time.time_ns()], digests.sha256_file

    def slow(path: Path) -> str:
        clock[0] += 3600 * 10**9
        return read(path)

    monkeypatch.setattr(digests, "sha256_file", slow)
    monkeypatch.setattr(digests, "time", SimpleNamespace(time_ns=lambda: clock[0]))
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    digests.sha256_of(path)
    assert not (tmp_path / "cache/rsrefseg/digests").exists()


def test_the_oldest_records_are_removed(tmp_path: Path, reads: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "_RECORDS", 2)
    paths = [tmp_path / name for name in ("first", "second", "third")]
    for path in paths:
        path.write_bytes(b"one")
        digests.sha256_of(path)
        for record in (tmp_path / "cache/rsrefseg/digests").iterdir():
            os.utime(record, ns=(0, record.stat().st_mtime_ns - 10**12))
    reads.clear()
    for path in reversed(paths):
        digests.sha256_of(path)
    assert reads == paths[:1]


@pytest.mark.parametrize("damage", [b"", b"[]", b"{", b'{"sha256": 3}', b"\xff"])
def test_a_damaged_record_is_ignored(tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    digests.sha256_of(path)
    (record,) = (tmp_path / "cache/rsrefseg/digests").iterdir()
    record.write_bytes(damage)
    assert digests.sha256_of(path) == sha256_file(path)


def test_a_cache_that_cannot_be_written_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    path = tmp_path / "weights"
    path.write_bytes(b"one")
    assert digests.sha256_of(path) == sha256_file(path)


def test_a_second_open_reads_no_weights_and_still_refuses_changes(
    folder: Path, tmp_path: Path, reads: list[Path]
) -> None:
    folder = shutil.copytree(folder, tmp_path / "bundle")
    Bundle.open(folder).graph_path(Stage.SIGLIP_TEXT)
    assert reads
    reads.clear()
    graph = Bundle.open(folder).graph_path(Stage.SIGLIP_TEXT)
    assert reads == []
    data, state = bytearray(graph.read_bytes()), graph.stat()
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    os.utime(graph, ns=(state.st_atime_ns, state.st_mtime_ns))
    with pytest.raises(BundleError, match="was changed"):
        Bundle.open(folder).graph_path(Stage.SIGLIP_TEXT)
