"""Hostile files raise a one-line error without running code or using excessive memory."""

import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from copy import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from rsrefseg.checkpoints.tensor_files import MAX_PICKLE_BYTES, read_weights, read_wrapped
from rsrefseg.engines.errors import BadInputError
from tests.support.made_data import Bomb
from tests.support.runs import refused

GIB = 1 << 30
Make = Callable[[Path], object]
Change = Callable[[zipfile.ZipFile, str, bytes], object]


class Allocates:
    """Requests 10 GiB when unpickled, which PyTorch's weights-only loading allows."""

    def __reduce__(self) -> tuple[Any, ...]:
        return bytearray, (10 * GIB,)


def saved(value: Any) -> Make:
    return lambda path: torch.save(value, path)


def written(content: bytes) -> Make:
    return lambda path: path.write_bytes(content)


def sound(path: Path) -> None:
    torch.save({"a": torch.ones(100, 100), "b": torch.ones(3)}, path)


def rewritten(change: Change) -> Make:
    """Write a valid archive with ``change`` applied to each entry."""

    def make(path: Path) -> None:
        sound(path)
        with zipfile.ZipFile(path) as old:
            entries = {name: old.read(name) for name in old.namelist()}
        with zipfile.ZipFile(path, "w") as new:
            for name, data in entries.items():
                change(new, name, data)

    return make


def changed(end: str, change: Callable[[bytes], bytes]) -> Make:
    """Write a valid archive with one changed entry."""
    return rewritten(lambda new, name, data: new.writestr(name, change(data) if name.endswith(end) else data))


def safetensors_header(header: object, data: bytes = b"", length: int | None = None) -> Make:
    text = json.dumps(header).encode()
    return written(struct.pack("<Q", len(text) if length is None else length) + text + data)


def index(text: str) -> Make:
    """Create a sharded folder whose shards are a small file and a folder."""

    def make(path: Path) -> None:
        (path / "y").mkdir(parents=True)
        (path / "model.safetensors.index.json").write_text(text)
        save_file({"a": torch.ones(3)}, path / "x.safetensors")

    return make


def beyond_storage(data: bytes) -> bytes:
    """Declare 30 GiB over a storage of 40 kB: change the element count (10000) and the sizes (100, twice)."""
    large = b"J" + struct.pack("<i", 90_000)
    return data.replace(b"M\x10\x27", b"J" + struct.pack("<i", 2**31 - 1)).replace(b"KdKd", large + large)


def inflate(new: zipfile.ZipFile, name: str, data: bytes) -> None:
    """Compress a gigabyte of zeros into a megabyte in place of the first tensor."""
    bomb = name.endswith("/data/0")
    entry = zipfile.ZipInfo(name)
    entry.compress_type = zipfile.ZIP_DEFLATED if bomb else zipfile.ZIP_STORED
    with new.open(entry, "w") as stream:
        for _ in range(1024 if bomb else 1):
            stream.write(bytes(1 << 20) if bomb else data)


def overlapping_zip(path: Path) -> None:
    """Write many entries over the same bytes."""
    sound(path)
    with zipfile.ZipFile(path, "a") as archive:
        shared = archive.getinfo(f"{path.stem}/data/0")
        for number in range(100):
            entry = copy(shared)
            entry.filename = f"{path.stem}/data/{number + 10}"
            archive.filelist.append(entry)
        archive._didModify = True  # type: ignore[attr-defined]


def cut_zip(path: Path) -> None:
    sound(path)
    os.truncate(path, path.stat().st_size - 500)


TEN_GIB = {"dtype": "F32", "shape": [10 * GIB // 4], "data_offsets": [0, 10 * GIB]}
HOSTILE: dict[str, Make] = {
    "code": lambda path: torch.save({"a": torch.ones(3), "b": Bomb(path.with_name("ran"))}, path),
    "code in a bare pickle": lambda path: path.write_bytes(pickle.dumps(Bomb(path.with_name("ran")))),
    "memory that PyTorch allows": saved({"a": torch.ones(3), "b": Allocates()}),
    "a repeated number": saved({"a": torch.ones(1).expand(1 << 36)}),
    "beyond its storage": changed("data.pkl", beyond_storage),
    "zip bomb": rewritten(inflate),
    "overlapping zip": overlapping_zip,
    "fat pickle": changed("data.pkl", lambda data: data + bytes(MAX_PICKLE_BYTES)),
    "many objects": changed("data.pkl", lambda data: b"\x80\x02" + b"]" * (MAX_PICKLE_BYTES - 100) + b"."),
    "cut zip": cut_zip,
    "cut record": changed("/data/0", lambda data: data[:99]),
    "another zip": rewritten(lambda new, name, data: new.writestr(name.replace(".pkl", ".txt"), data)),
    "sparse": saved({"a": torch.eye(3).to_sparse()}),
    "meta": saved({"a": torch.ones(1 << 30, device="meta")}),
    "more than tensors": saved({"a": torch.ones(3), "epoch": 3}),
    "a list": saved([torch.ones(3)]),
    "header of 10 GB": safetensors_header({"a": 1}, length=10 * GIB),
    "data of 10 GB": safetensors_header({"a": TEN_GIB}, bytes(100)),
    "empty": written(b""),
    "a web page": written(b"<!DOCTYPE html><html>Not Found</html>"),
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "index out of the folder": index('{"weight_map": {"a": "../../etc/passwd"}}'),
    "index of a folder": index('{"weight_map": {"a": "y"}}'),
    "index that lies": index('{"weight_map": {"a": "x.safetensors", "b": "x.safetensors"}}'),
    "deep index": index("[" * 100_000),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / "x.pth"
    HOSTILE[name](path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with refused(str(path)):
        read_weights(path)
    assert not (tmp_path / "ran").exists(), "code of the file was run"
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown_mib < 300, "memory out of proportion"
    assert not path.is_file() or path.stat().st_size < 40 << 20


def test_what_torch_save_writes_is_read(tmp_path: Path) -> None:
    norm = torch.nn.BatchNorm2d(4).state_dict()
    others = {"p": torch.nn.Parameter(torch.ones(3)), "half": torch.ones(2).bfloat16(), "view": torch.ones(4, 4).T}
    state = OrderedDict(norm | others)
    torch.save(state, tmp_path / "x.pth")
    found = read_weights(tmp_path / "x.pth")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


@pytest.mark.parametrize("wrapping", ["module", "state_dict", "model_state_dict", None])
def test_wrapped_state_dicts_are_unwrapped(tmp_path: Path, wrapping: str | None) -> None:
    state = {"module.a": torch.ones(3), "module.b": torch.zeros(2)}
    torch.save({wrapping: state, "epoch": 3, "lr": 1e-4} if wrapping else state, tmp_path / "x.pth")
    assert read_wrapped(tmp_path / "x.pth").keys() == {"a", "b"}
    torch.save({"module": state, "state_dict": state}, tmp_path / "x.pth")
    with refused("both 'module' and 'state_dict'"):
        read_wrapped(tmp_path / "x.pth")


def test_any_single_spoiled_byte_is_an_error_of_ours_or_none(tmp_path: Path) -> None:
    """Random changes are either read or raise a one-line error."""
    generator = torch.Generator().manual_seed(0)
    torch.save({"a": torch.ones(5, 5), "b": torch.ones(3)}, tmp_path / "good.pth")
    save_file({"a": torch.ones(5, 5), "b": torch.ones(3)}, tmp_path / "good.safetensors")
    for good in ("good.pth", "good.safetensors"):
        data = (tmp_path / good).read_bytes()
        bad = tmp_path / good.replace("good", "bad")
        for place in torch.randint(len(data), (150,), generator=generator).tolist():
            bad.write_bytes(data[:place] + bytes([data[place] ^ 0x41]) + data[place + 1 :])
            try:
                read_weights(bad)
            except BadInputError as error:
                assert "\n" not in str(error)  # noqa: PT017 (most bytes do no harm)


MAPPED = """
import resource, sys
from pathlib import Path
from rsrefseg.checkpoints.tensor_files import read_weights
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
kept = [read_weights(Path(name)) for name in sys.argv[1:]]
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def test_a_real_file_is_mapped_not_read(tmp_path: Path) -> None:
    """256 MiB on disk cost next to nothing until they are copied. In a process of its own, for its peak."""
    names = [str(tmp_path / name) for name in ("x.pth", "x.safetensors")]
    torch.save({"a": torch.ones(64 << 20)}, names[0])
    save_file({"a": torch.ones(64 << 20)}, names[1])
    done = subprocess.run([sys.executable, "-c", MAPPED, *names], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 64 << 10, "KiB"
