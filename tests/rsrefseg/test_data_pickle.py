"""Pickles of annotations: plain values are read, code never runs."""

import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rsrefseg.data import safe_pickle
from rsrefseg.data.rrsisd import REFS_FILE
from rsrefseg.data.safe_pickle import MAX_PICKLE_BYTES, load_plain_pickle
from rsrefseg.data.samples import open_dataset
from tests.support.made_data import refs_path, refusal, write_scenes


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_scenes(tmp_path / "scenes")
    return tmp_path / "scenes"


class Bomb:
    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_with_code_is_refused_and_the_code_not_run(root: Path, tmp_path: Path, protocol: int) -> None:
    refs_path(root).write_bytes(pickle.dumps([Bomb(tmp_path / "ran")], protocol=protocol))
    line = refusal(lambda: open_dataset(root))
    assert str(refs_path(root)) in line
    assert "contains code (posix.system): refused" in line
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", [np.int64(3), {1, 2}, frozenset({1}), bytearray(b"x"), Path("x"), 1 + 2j])
def test_only_plain_values_are_read(tmp_path: Path, value: object) -> None:
    path = tmp_path / "values.p"
    path.write_bytes(pickle.dumps([value], protocol=2))
    assert "refused" in refusal(lambda: load_plain_pickle(path))


def test_plain_values_come_back_from_every_protocol(tmp_path: Path) -> None:
    values = [{"a": 1, "b": [None, True, -(10**30), 2.5, ("x", "y")], "ü": "ÿ", "again": "a"}]
    path = tmp_path / "values.p"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        path.write_bytes(pickle.dumps(values, protocol=protocol))
        assert load_plain_pickle(path) == values


def test_strings_of_python_2_are_text(tmp_path: Path) -> None:
    path = tmp_path / "values.p"
    path.write_bytes(b"(lp1\nS'the ship'\np2\na.")
    assert load_plain_pickle(path) == ["the ship"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"not a pickle",
        b"\x80\x04]",  # no end
        b"\x80\x04.",  # an empty stack
        b"\x80\x63N.",  # protocol 99
        b"]N}ub.",  # a stack that does not fit
        b"\x80\x02]K\x01b.",  # attributes set on a list
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fx.",  # a string longer than the file
        b"Ppersistent\n.",
        b"\x80\x02K\x01Q.",
        b"\x80\x02\x82\x01.",  # an extension code
    ],
)
def test_corrupt_pickles_are_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "values.p"
    path.write_bytes(data)
    assert "values.p" in refusal(lambda: load_plain_pickle(path))


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x02]r\xff\xff\xff\x7f.",  # a memo index that would take 32 GiB
        b"\x80\x02]r\xff\xff\x0f\x00.",  # and one of 16 MiB, which any machine would give
        b"]p2000000000\n.",
    ],
)
def test_greedy_pickles_are_refused_before_they_are_served(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "values.p"
    path.write_bytes(data)
    assert "asks for far more memory" in refusal(lambda: load_plain_pickle(path))


def test_more_objects_than_annotations_have_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safe_pickle, "MAX_PICKLE_OBJECTS", 1000)
    path = tmp_path / "values.p"
    path.write_bytes(b"\x80\x02(" + b"]" * 1000 + b"l.")
    assert "asks for far more memory" in refusal(lambda: load_plain_pickle(path))
    path.write_bytes(b"\x80\x02]q\0" + b"(" + b"h\0" * 5000 + b"l.")  # one object, named often
    assert len(load_plain_pickle(path)) == 5000


def test_a_truncated_pickle_is_refused_wherever_it_ends(root: Path) -> None:
    data = refs_path(root).read_bytes()
    for end in range(0, len(data), 37):
        refs_path(root).write_bytes(data[:end])
        assert "cut off or corrupt" in refusal(lambda: open_dataset(root))


def test_deep_nesting_is_refused_without_a_crash(root: Path) -> None:
    refs_path(root).write_bytes(b"\x80\x02" + b"]" * 300_000 + b"a" * 299_999 + b".")
    assert REFS_FILE in refusal(lambda: open_dataset(root))


def test_a_huge_pickle_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "values.p"
    with path.open("wb") as stream:
        stream.truncate(MAX_PICKLE_BYTES + 1)
    assert "MiB" in refusal(lambda: load_plain_pickle(path))
