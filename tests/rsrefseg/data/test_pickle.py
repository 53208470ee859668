"""Pickles of annotations yield plain values and never run code."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rsrefseg.data import safe_pickle
from rsrefseg.data.safe_pickle import MAX_PICKLE_BYTES, load_plain_pickle
from tests.support.made_data import Bomb, refusal


def load(folder: Path, data: bytes) -> Any:
    path = folder / "values.p"
    path.write_bytes(data)
    return load_plain_pickle(path)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_and_numpy_numbers_come_back_from_every_protocol(tmp_path: Path, protocol: int) -> None:
    values = [{"a": 1, "b": [None, True, -(10**30), 2.5, ("x", "y")], "ü": "ÿ", "again": "a"}]
    assert load(tmp_path, pickle.dumps(values, protocol=protocol)) == values
    kinds = (np.int8, np.int16, np.int32, np.int64, np.uint8, np.uint16, np.uint32, np.uint64, np.float16)
    numbers = [kind(number) for kind in (*kinds, np.float32, np.float64) for number in (0, 5, 127)]
    numbers += [np.int64(-(2**60)), np.float64(0.1), np.array([1000], ">i4")[0], np.array([-2.5], ">f8")[0]]
    found = load(tmp_path, pickle.dumps(numbers, protocol=protocol))
    assert found == [number.item() for number in numbers]
    assert {type(number) for number in found} == {int, float}


def test_the_older_name_of_numpys_module_and_python_2_are_read(tmp_path: Path) -> None:
    data = pickle.dumps([np.int64(300)], protocol=2).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    assert load(tmp_path, data) == [300]
    assert load(tmp_path, b"(lp1\nS'the ship'\np2\na.") == ["the ship"]


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_code_is_refused_and_not_run(tmp_path: Path, protocol: int) -> None:
    line = refusal(lambda: load(tmp_path, pickle.dumps([Bomb(tmp_path / "ran")], protocol=protocol)))
    assert "values.p" in line
    assert "contains code (posix.mkdir)" in line
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "value", [{1, 2}, bytearray(b"x"), Path("x"), 1 + 2j, np.bool_(True), np.str_("x"), np.arange(3), np.dtype("V9")]
)
def test_only_plain_values_are_read(tmp_path: Path, value: object) -> None:
    refusal(lambda: load(tmp_path, pickle.dumps([value], protocol=2)))


@pytest.mark.parametrize(
    "data",
    [
        b"not a pickle",
        b"\x80\x04.",  # an empty stack
        b"\x80\x63N.",  # protocol 99
        b"]N}ub.",  # a stack that does not fit
        b"\x80\x02]K\x01b.",  # attributes set on a list
        b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fx.",  # a string longer than the file
        b"\x80\x02" + b"]" * 300_000 + b"a" * 299_999 + b"\xff.",
        b"Ppersistent\n.",
        b"\x80\x02K\x01Q.",
        b"\x80\x02\x82\x01.",  # an extension code
        b"\x80\x02]r\xff\xff\xff\x7f.",  # a memo index that would take 32 GiB
        b"\x80\x02]r\xff\xff\x0f\x00.",  # and one of 16 MiB, which any machine would give
        b"]p2000000000\n.",
        b"cnumpy\ndtype\n(S'i800000000'\ntR.",
        b"c_codecs\nencode\n(S'x'\nS'rot13'\ntR.",
        b"cnumpy._core.multiarray\nscalar\n(I1\nI2\ntR.",
    ],
)
def test_corrupt_and_greedy_pickles_are_refused(tmp_path: Path, data: bytes) -> None:
    assert "values.p" in refusal(lambda: load(tmp_path, data))


def test_a_pickle_cut_off_anywhere_is_refused(tmp_path: Path) -> None:
    data = pickle.dumps([{"sent": "the ship", "ids": [np.int64(7)] * 9}], protocol=2)
    for end in range(len(data)):
        assert "values.p" in refusal(lambda end=end: load(tmp_path, data[:end]))


def test_what_a_pickle_sets_on_its_globals_ends_with_it(tmp_path: Path) -> None:
    scalar = b"cnumpy.core.multiarray\nscalar\n"
    load(tmp_path, b"\x80\x02" + scalar + b"N}X\x0c\x00\x00\x00__defaults__Ns\x86b.")
    assert load(tmp_path, pickle.dumps([np.int64(3)], protocol=2)) == [3]


def test_more_than_annotations_have_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safe_pickle, "MAX_PICKLE_OBJECTS", 1000)
    assert "far more memory" in refusal(lambda: load(tmp_path, b"\x80\x02(" + b"]" * 1000 + b"l."))
    assert len(load(tmp_path, b"\x80\x02]q\0" + b"(" + b"h\0" * 5000 + b"l.")) == 5000, "one object, named often"
    with (tmp_path / "large.p").open("wb") as stream:
        stream.truncate(MAX_PICKLE_BYTES + 1)
    assert "MiB" in refusal(lambda: load_plain_pickle(tmp_path / "large.p"))
