"""Files made to do harm: one clear line, no code run, no memory out of proportion to the file."""

import builtins
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from rsrefseg.checkpoints.sam_file import match_sam
from rsrefseg.checkpoints.tensor_files import MAX_PICKLE_BYTES, read_weights, read_wrapped
from rsrefseg.engines.errors import BadInputError
from rsrefseg.model.model import build_model
from tests.support.upstream import brought_config, segment_anything_sam

CONFIG = brought_config()
GIB = 1 << 30
Make = Callable[[Path], Path]


class Runs:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return (os.mkdir, (str(self.path),))


class Allocates:
    """Unpickling it asks for 10 GiB; PyTorch's own weights-only loading allows it."""

    def __reduce__(self) -> tuple[Callable[..., bytearray], tuple[int]]:
        return (builtins.bytearray, (10 * GIB,))


def plain(folder: Path) -> Path:
    path = folder / "plain.pth"
    torch.save({"a": torch.ones(100, 100), "b": torch.ones(3)}, path)
    return path


def rewrite(
    source: Path, target: Path, change: Callable[[str, bytes], bytes], method: int = zipfile.ZIP_STORED
) -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", method) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, change(entry.filename, old.read(entry)))
    return target


def saved(value: Any, **options: Any) -> Make:
    """A file that ``torch.save`` wrote; ``value`` may be made for the folder."""

    def make(folder: Path) -> Path:
        torch.save(value(folder) if callable(value) else value, folder / "x.pth", **options)
        return folder / "x.pth"

    return make


def written(content: bytes) -> Make:
    def make(folder: Path) -> Path:
        (folder / "x.pth").write_bytes(content)
        return folder / "x.pth"

    return make


def changed(name: str, change: Callable[[bytes], bytes]) -> Make:
    """A sound archive with one entry changed."""
    return lambda folder: rewrite(
        plain(folder), folder / "x.pth", lambda entry, data: change(data) if entry.endswith(name) else data
    )


def safetensors_header(header: object, data: bytes = b"", length: int | None = None) -> Make:
    text = json.dumps(header).encode()
    return written(struct.pack("<Q", len(text) if length is None else length) + text + data)


def index(home: object) -> Make:
    """A sharded folder whose shards are one small file and a folder."""

    def make(folder: Path) -> Path:
        text = home if isinstance(home, str) else json.dumps({"weight_map": home})
        (folder / "model.safetensors.index.json").write_text(text)
        save_file({"a": torch.ones(3)}, folder / "x.safetensors")
        (folder / "y").mkdir()
        return folder

    return make


def beyond_storage(data: bytes) -> bytes:
    """Sizes that say 30 GiB over a storage of 40 kB: its number of elements (10000) and its sizes (100, twice)."""
    large = b"J" + struct.pack("<i", 90_000)
    return data.replace(b"M\x10\x27", b"J" + struct.pack("<i", 2**31 - 1)).replace(b"KdKd", large + large)


def zip_bomb(folder: Path) -> Path:
    """A gigabyte of zeros in a megabyte."""
    source, path = plain(folder), folder / "x.pth"
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(path, "w") as new:
        for entry in old.infolist():
            if entry.filename.endswith("/data/0"):
                with new.open(zipfile.ZipInfo(entry.filename), "w") as stream:
                    stream._compressor = zlib.compressobj(9, zlib.DEFLATED, -15)  # type: ignore[attr-defined]
                    stream._zinfo.compress_type = zipfile.ZIP_DEFLATED  # type: ignore[attr-defined]
                    for _ in range(1024):
                        stream.write(bytes(1 << 20))
            else:
                new.writestr(entry.filename, old.read(entry))
    assert path.stat().st_size < 4 << 20
    return path


def overlapping_zip(folder: Path) -> Path:
    """Many entries over the same bytes."""
    path = plain(folder)
    with zipfile.ZipFile(path, "a") as archive:
        shared = archive.getinfo("plain/data/0")
        for number in range(100):
            entry = zipfile.ZipInfo(f"plain/data/{number + 10}")
            for name in ("header_offset", "compress_size", "file_size", "CRC"):
                setattr(entry, name, getattr(shared, name))
            archive.filelist.append(entry)
        archive._didModify = True  # type: ignore[attr-defined]
    return path


def some_zip(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "x.pth", "w") as archive:
        archive.writestr("hello.txt", "hello")
    return folder / "x.pth"


def cut(make: Make, size: int) -> Make:
    def made(folder: Path) -> Path:
        path = make(folder)
        path.write_bytes(path.read_bytes()[:-size])
        return path

    return made


def a_pipe(folder: Path) -> Path:
    os.mkfifo(folder / "x.pth")
    return folder / "x.pth"


def a_folder(folder: Path) -> Path:
    (folder / "x.pth").mkdir()
    return folder / "x.pth"


def dtype(name: str, shape: list[int], end: int) -> dict[str, object]:
    return {"dtype": name, "shape": shape, "data_offsets": [0, end]}


HOSTILE: dict[str, Make] = {
    "code": saved(lambda folder: {"a": torch.ones(3), "b": Runs(folder / "ran")}),
    "code in the old format": saved(lambda folder: {"b": Runs(folder / "ran")}, _use_new_zipfile_serialization=False),
    "code in a bare pickle": lambda folder: written(pickle.dumps({"a": Runs(folder / "ran")}))(folder),
    "memory that PyTorch allows": saved({"a": torch.ones(3), "b": Allocates()}),
    "a repeated number": saved({"a": torch.ones(1).expand(1 << 36)}),
    "beyond its storage": changed("data.pkl", beyond_storage),
    "zip bomb": zip_bomb,
    "overlapping zip": overlapping_zip,
    "fat pickle": changed("data.pkl", lambda data: data + bytes(MAX_PICKLE_BYTES)),
    "many objects": changed("data.pkl", lambda data: b"\x80\x02" + b"]" * (MAX_PICKLE_BYTES - 100) + b"."),
    "cut zip": cut(plain, 500),
    "cut record": changed("/data/0", lambda data: data[:99]),
    "another zip": some_zip,
    "sparse": saved({"a": torch.eye(3).to_sparse()}),
    "meta": saved({"a": torch.ones(1 << 30, device="meta")}),
    "more than tensors": saved({"a": torch.ones(3), "epoch": 3}),
    "a list": saved([torch.ones(3)]),
    "header of 10 GB": safetensors_header({"a": 1}, length=10 * GIB),
    "data of 10 GB": safetensors_header({"a": dtype("F32", [10 * GIB // 4], 10 * GIB)}, bytes(100)),
    "overflowing shape": safetensors_header({"a": dtype("F32", [2**33, 2**33], 4)}, bytes(4)),
    "overlapping tensors": safetensors_header(dict.fromkeys("ab", dtype("F32", [25], 100)), bytes(100)),
    "unknown dtype": safetensors_header({"a": dtype("F99", [1], 4)}, bytes(4)),
    "cut safetensors": cut(safetensors_header({"a": dtype("F32", [25], 100)}, bytes(100)), 10),
    "empty": written(b""),
    "a web page": written(b"<!DOCTYPE html><html>Not Found</html>"),
    "a folder": a_folder,
    "a pipe": a_pipe,
    "index out of the folder": index({"a": "../../etc/passwd"}),
    "index of a folder": index({"a": "y"}),
    "index that lies": index({"a": "x.safetensors", "b": "x.safetensors"}),
    "deep index": index("[" * 100_000),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_file_is_refused_in_one_line(tmp_path: Path, name: str) -> None:
    path = HOSTILE[name](tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadInputError) as refusal:
        read_weights(path)
    assert "\n" not in str(refusal.value)
    assert str(tmp_path) in str(refusal.value)
    assert not (tmp_path / "ran").exists(), "code of the file was run"
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown_mib < 300, "memory out of proportion"
    assert not path.is_file() or path.stat().st_size < 40 << 20


def test_what_torch_save_writes_is_read(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4))
    state = OrderedDict(module.state_dict())
    parameters = {"p": torch.nn.Parameter(torch.ones(3)), "half": torch.ones(2).bfloat16(), "view": torch.ones(4, 4).T}
    torch.save(state | parameters, tmp_path / "x.pth")
    found = read_weights(tmp_path / "x.pth")
    assert found.keys() == (state | parameters).keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in (state | parameters).items())


@pytest.mark.parametrize("wrapping", ["module", "state_dict", "model_state_dict", None])
def test_wrapped_state_dicts_are_unwrapped(tmp_path: Path, wrapping: str | None) -> None:
    state = {"module.a": torch.ones(3), "module.b": torch.zeros(2)}
    torch.save({wrapping: state, "epoch": 3, "lr": 1e-4} if wrapping else state, tmp_path / "x.pth")
    found = read_wrapped(tmp_path / "x.pth")
    assert found.keys() == {"a", "b"}


def test_two_wrapped_state_dicts_are_one_too_many(tmp_path: Path) -> None:
    torch.save({"module": {"a": torch.ones(1)}, "state_dict": {"a": torch.ones(1)}}, tmp_path / "x.pth")
    with pytest.raises(BadInputError, match="both 'module' and 'state_dict'"):
        read_wrapped(tmp_path / "x.pth")


def test_any_single_spoiled_byte_is_an_error_of_ours_or_none(tmp_path: Path) -> None:
    """Never a crash: what is read is read, what is not is refused in one line."""
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


def test_a_real_file_is_mapped_not_read(tmp_path: Path) -> None:
    """256 MiB on disk cost next to nothing until they are copied. In a process of its own, for its peak."""
    torch.save({"a": torch.ones(64 << 20)}, tmp_path / "x.pth")
    save_file({"a": torch.ones(64 << 20)}, tmp_path / "x.safetensors")
    code = (
        "import resource, sys\nfrom pathlib import Path\nfrom rsrefseg.checkpoints.tensor_files import read_weights\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\nbefore = peak()\n"
        "kept = [read_weights(Path(name)) for name in sys.argv[1:]]\nprint(peak() - before)"
    )
    names = [str(tmp_path / name) for name in ("x.pth", "x.safetensors")]
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 64 << 10, "KiB"


def test_a_sam_with_a_repeated_number_never_reaches_the_model(tmp_path: Path) -> None:
    state = dict(segment_anything_sam(CONFIG).state_dict())
    state["image_encoder.pos_embed"] = torch.ones(1).expand(1, 4, 4, 24)
    torch.save(state, tmp_path / "sam.pth")
    with pytest.raises(BadInputError, match="not an ordinary dense tensor"):
        match_sam(tmp_path / "sam.pth", CONFIG, build_model(CONFIG, device="meta").state_dict())
