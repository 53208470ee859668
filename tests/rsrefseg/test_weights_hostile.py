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

import pytest
import torch
from safetensors.torch import save_file

from rsrefseg.checkpoints.sam_file import match_sam
from rsrefseg.checkpoints.tensor_files import read_weights, read_wrapped
from rsrefseg.checkpoints.torch_zip import MAX_PICKLE_BYTES, load_torch_zip
from rsrefseg.engines.errors import BadInputError
from rsrefseg.model.model import build_model
from tests.support.upstream import brought_config, segment_anything_sam

CONFIG = brought_config()
GIB = 1 << 30


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


def code_in_zip(folder: Path) -> Path:
    torch.save({"a": torch.ones(3), "b": Runs(folder / "ran")}, folder / "x.pth")
    return folder / "x.pth"


def code_in_bare_pickle(folder: Path) -> Path:
    (folder / "x.pth").write_bytes(pickle.dumps({"a": Runs(folder / "ran")}))
    return folder / "x.pth"


def code_in_old_format(folder: Path) -> Path:
    torch.save({"b": Runs(folder / "ran")}, folder / "x.pth", _use_new_zipfile_serialization=False)
    return folder / "x.pth"


def memory_in_pickle(folder: Path) -> Path:
    torch.save({"a": torch.ones(3), "b": Allocates()}, folder / "x.pth")
    return folder / "x.pth"


def repeated_number(folder: Path) -> Path:
    torch.save({"a": torch.ones(1).expand(1 << 36)}, folder / "x.pth")
    return folder / "x.pth"


def beyond_storage(folder: Path) -> Path:
    """A tensor whose sizes say 30 GiB over a storage of 40 kB."""

    def change(name: str, data: bytes) -> bytes:
        # The storage's number of elements (10000 as BININT2) and the sizes (100 as BININT1, twice), made large.
        large = b"J" + struct.pack("<i", 90_000)
        return data.replace(b"M\x10\x27", b"J" + struct.pack("<i", 2**31 - 1)).replace(b"KdKd", large + large)

    return rewrite(plain(folder), folder / "x.pth", lambda name, data: change(name, data) if "pkl" in name else data)


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
        for index in range(100):
            entry = zipfile.ZipInfo(f"plain/data/{index + 10}")
            for name in ("header_offset", "compress_size", "file_size", "CRC"):
                setattr(entry, name, getattr(shared, name))
            archive.filelist.append(entry)
        archive._didModify = True  # type: ignore[attr-defined]
    return path


def fat_pickle(folder: Path) -> Path:
    def change(name: str, data: bytes) -> bytes:
        return data + bytes(MAX_PICKLE_BYTES) if name.endswith("data.pkl") else data

    return rewrite(plain(folder), folder / "x.pth", change)


def many_objects(folder: Path) -> Path:
    def change(name: str, data: bytes) -> bytes:
        return b"\x80\x02" + b"]" * (MAX_PICKLE_BYTES - 100) + b"." if name.endswith("data.pkl") else data

    return rewrite(plain(folder), folder / "x.pth", change)


def cut_zip(folder: Path) -> Path:
    path = plain(folder)
    path.write_bytes(path.read_bytes()[:-500])
    return path


def cut_record(folder: Path) -> Path:
    return rewrite(plain(folder), folder / "x.pth", lambda name, data: data[:99] if name.endswith("/data/0") else data)


def some_zip(folder: Path) -> Path:
    with zipfile.ZipFile(folder / "x.pth", "w") as archive:
        archive.writestr("hello.txt", "hello")
    return folder / "x.pth"


def sparse(folder: Path) -> Path:
    torch.save({"a": torch.eye(3).to_sparse()}, folder / "x.pth")
    return folder / "x.pth"


def meta(folder: Path) -> Path:
    torch.save({"a": torch.ones(1 << 30, device="meta")}, folder / "x.pth")
    return folder / "x.pth"


def no_tensors(folder: Path) -> Path:
    torch.save({"a": torch.ones(3), "epoch": 3}, folder / "x.pth")
    return folder / "x.pth"


def a_list(folder: Path) -> Path:
    torch.save([torch.ones(3)], folder / "x.pth")
    return folder / "x.pth"


def safetensors_bytes(folder: Path, header: object, data: bytes = b"", length: int | None = None) -> Path:
    text = json.dumps(header).encode()
    (folder / "x.safetensors").write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return folder / "x.safetensors"


def header_of_10_gb(folder: Path) -> Path:
    return safetensors_bytes(folder, {"a": 1}, length=10 * GIB)


def data_of_10_gb(folder: Path) -> Path:
    entry = {"dtype": "F32", "shape": [10 * GIB // 4], "data_offsets": [0, 10 * GIB]}
    return safetensors_bytes(folder, {"a": entry}, bytes(100))


def overflowing_shape(folder: Path) -> Path:
    entry = {"dtype": "F32", "shape": [2**33, 2**33], "data_offsets": [0, 4]}
    return safetensors_bytes(folder, {"a": entry}, bytes(4))


def overlapping_tensors(folder: Path) -> Path:
    entry = {"dtype": "F32", "shape": [25], "data_offsets": [0, 100]}
    return safetensors_bytes(folder, {"a": entry, "b": entry}, bytes(100))


def unknown_dtype(folder: Path) -> Path:
    return safetensors_bytes(folder, {"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}, bytes(4))


def cut_safetensors(folder: Path) -> Path:
    path = folder / "x.safetensors"
    save_file({"a": torch.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:-10])
    return path


def empty(folder: Path) -> Path:
    (folder / "x.pth").touch()
    return folder / "x.pth"


def a_web_page(folder: Path) -> Path:
    (folder / "x.pth").write_text("<!DOCTYPE html><html>Not Found</html>")
    return folder / "x.pth"


def a_folder(folder: Path) -> Path:
    (folder / "x.pth").mkdir()
    return folder / "x.pth"


def a_pipe(folder: Path) -> Path:
    os.mkfifo(folder / "x.pth")
    return folder / "x.pth"


def index_out_of_the_folder(folder: Path) -> Path:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    return folder


def index_of_folders(folder: Path) -> Path:
    (folder / "x").mkdir()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "x"}}))
    return folder


def deep_index(folder: Path) -> Path:
    (folder / "model.safetensors.index.json").write_text("[" * 100_000)
    return folder


def lying_index(folder: Path) -> Path:
    save_file({"a": torch.ones(3)}, folder / "x.safetensors")
    home = {"a": "x.safetensors", "b": "x.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": home}))
    return folder


HOSTILE = [
    code_in_zip,
    code_in_bare_pickle,
    code_in_old_format,
    memory_in_pickle,
    repeated_number,
    beyond_storage,
    zip_bomb,
    overlapping_zip,
    fat_pickle,
    many_objects,
    cut_zip,
    cut_record,
    some_zip,
    sparse,
    meta,
    no_tensors,
    a_list,
    header_of_10_gb,
    data_of_10_gb,
    overflowing_shape,
    overlapping_tensors,
    unknown_dtype,
    cut_safetensors,
    empty,
    a_web_page,
    a_folder,
    a_pipe,
    index_out_of_the_folder,
    index_of_folders,
    deep_index,
    lying_index,
]


@pytest.mark.parametrize("make", HOSTILE, ids=lambda make: make.__name__)
def test_a_hostile_file_is_refused_in_one_line(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    path = make(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(BadInputError) as refusal:
        read_weights(path)
    assert "\n" not in str(refusal.value)
    assert str(tmp_path) in str(refusal.value)
    assert not (tmp_path / "ran").exists(), "code of the file was run"
    grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown_mib < 300, "memory out of proportion"
    assert not path.is_file() or path.stat().st_size < 40 << 20


def test_the_bytes_that_pytorch_would_allow_are_ours_to_refuse(tmp_path: Path) -> None:
    """If PyTorch ever refuses them too, our own list can go."""
    with pytest.raises(BadInputError, match=r"bytearray"):
        load_torch_zip(memory_in_pickle(tmp_path))


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
        "import resource, sys\nfrom pathlib import Path\nfrom rsrefseg.weights.reading import read_weights\n"
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
    with pytest.raises(BadInputError, match="no ordinary dense tensor"):
        match_sam(tmp_path / "sam.pth", CONFIG, build_model(CONFIG, device="meta").state_dict())
