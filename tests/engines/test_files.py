"""What is written is whole or not there, at whatever step a writer fails, and however many write at once."""

import errno
import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rsrefseg.engines.errors import BadInputError, RSRefSegError
from rsrefseg.engines.system import files
from rsrefseg.engines.system.files import (
    atomic_directory,
    atomic_file,
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_text,
    clear_leftovers,
    recover_directory,
    sha256_file,
)
from tests.support import ROOT


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def write_directory(path: Path, content: str, replaces: str | None = None) -> None:
    with atomic_directory(path, replaces) as folder:
        for name in "abc":
            (folder / name).write_text(content)


def contents(path: Path) -> list[str]:
    return [(path / name).read_text() for name in "abc"]


def dead_process() -> int:
    with subprocess.Popen(["true"]) as process:
        process.wait()
    return process.pid


def test_a_write_makes_its_folders_and_leaves_nothing_else(tmp_path: Path) -> None:
    value = {"phrase": "船 🚢", "file": "a\udce9.png"}
    atomic_write_json(tmp_path / "new" / "deep" / "a.json", value)
    text = (tmp_path / "new" / "deep" / "a.json").read_bytes().decode("utf-8")
    assert "船 🚢" in text
    assert json.loads(text) == value
    assert names(tmp_path / "new" / "deep") == ["a.json"]
    with atomic_file(tmp_path / "mask.png", durable=False) as temporary:
        assert (temporary.parent, temporary.suffix) == (tmp_path, ".png")
        temporary.write_bytes(b"abc")
    assert names(tmp_path) == ["mask.png", "new"]
    assert sha256_file(tmp_path / "mask.png") == hashlib.sha256(b"abc").hexdigest()


STEPS = [(os, "fsync"), (shutil, "rmtree")]
STEPS += [(Path, step) for step in ("mkdir", "write_text", "write_bytes", "replace", "rename")]


def failing(real: Callable, call: int, late: bool, error: BaseException) -> Callable:
    """``real``, whose n-th call fails before or after its work."""
    calls = itertools.count()

    def fails(*arguments: object, **options: object) -> object:
        if next(calls) != call:
            return real(*arguments, **options)
        if late:
            real(*arguments, **options)
        raise error

    return fails


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))], ids=repr)
@pytest.mark.parametrize("write", [atomic_write_text, write_directory])
def test_a_write_that_fails_at_any_step_keeps_the_old_content(
    write: Callable[[Path, str], None], error: BaseException, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call that changes something fails once, before and after its work."""
    failed, out = 0, tmp_path / "out"
    for (owner, step), call, late in itertools.product(STEPS, range(6), (False, True)):
        write(out, "old")
        with monkeypatch.context() as patched:
            patched.setattr(owner, step, failing(getattr(owner, step), call, late, error))
            try:
                write(out, "new")
            except (RSRefSegError, KeyboardInterrupt, OSError):
                failed += 1
        found = {out.read_text()} if out.is_file() else set(contents(out))
        assert found in ({"old"}, {"new"}), f"{step} {call}"
        clear_leftovers(tmp_path)
        assert len([name for name in names(tmp_path) if "partial" in name]) <= (step == "rmtree")
        shutil.rmtree(tmp_path)
        tmp_path.mkdir()
    assert failed >= 6


def test_an_error_of_something_else_passes_as_it_is(tmp_path: Path) -> None:
    errors = (FileNotFoundError(errno.ENOENT, "no", str(tmp_path / "input")), OSError("truncated"), ValueError("mine"))
    for writer, error in itertools.product((atomic_file, atomic_directory), errors):
        with pytest.raises(type(error)) as passed, writer(tmp_path / "out"):
            raise error
        assert passed.value is error
    assert names(tmp_path) == []


def test_an_output_that_cannot_be_written_is_one_line_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "a", tmp_path / "folder", tmp_path / ("x" * 300)):
        with pytest.raises(BadInputError, match=f"'{path}'") as refusal:
            atomic_write_bytes(path, b"data")
        assert "\n" not in str(refusal.value)
    for path in (tmp_path / "file", tmp_path / "file" / "a"):
        with pytest.raises(BadInputError, match=f"'{path}'"), atomic_directory(path):
            pass
    with pytest.raises(BadInputError, match="cannot write"), atomic_file(tmp_path / "a"):
        pass  # writes nothing
    assert names(tmp_path) == ["file", "folder"]


@pytest.mark.parametrize("code", [errno.EROFS, errno.EACCES, errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_an_error_of_the_temporary_file_names_the_target(code: int, tmp_path: Path) -> None:
    with pytest.raises(RSRefSegError, match=f"'{tmp_path / 'a'}'") as refusal, atomic_file(tmp_path / "a") as temporary:
        raise OSError(code, os.strerror(code), str(temporary))
    assert ("no space left" in str(refusal.value)) == (code in (errno.ENOSPC, errno.EDQUOT))


FULL_DISK = """
from pathlib import Path
import numpy as np
from PIL import Image
from safetensors.numpy import save_file
from rsrefseg.engines.errors import RSRefSegError
from rsrefseg.engines.system.files import atomic_directory, atomic_file

noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8)
for place, write in [
    (atomic_directory(Path("disk/out")), lambda out: (out / "a").write_bytes(noise)),
    (atomic_file(Path("disk/a.png"), durable=False), lambda out: Image.fromarray(noise).save(out)),
    (atomic_file(Path("disk/a.safetensors")), lambda out: save_file({"a": noise}, out)),
]:
    try:
        with place as out:
            write(out)
    except RSRefSegError as error:
        print(error)
    assert not list(Path("disk").iterdir())
"""


def test_on_a_full_disk_every_writer_says_so_and_cleans_up(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    alone, mount = ["unshare", "-rm", "sh", "-c"], "mount -t tmpfs -o size=512k tmpfs disk"
    if not shutil.which("unshare") or subprocess.run([*alone, mount], cwd=tmp_path, check=False).returncode:
        pytest.skip("no small disk can be mounted here")
    command = f"{mount} && PYTHONPATH='{ROOT}' '{sys.executable}' -c \"$0\""
    done = subprocess.run([*alone, command, FULL_DISK], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.stdout.count("no space left"), done.stderr) == (3, "")


def test_a_folder_replaces_the_old_one_as_a_whole(tmp_path: Path) -> None:
    write_directory(tmp_path / "out", "old")
    (tmp_path / "out" / "old file").touch()
    (tmp_path / "link").symlink_to("out")
    with atomic_directory(tmp_path / "link") as folder:
        atomic_write_text(folder / "a", "one")
        write_directory(folder / "inner", "two")
        assert contents(tmp_path / "out") == ["old"] * 3
    assert names(tmp_path) == ["link", "out"]
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "out") == ["a", "inner"]


def test_a_folder_of_another_kind_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").touch()
    with pytest.raises(BadInputError, match="home"):
        write_directory(tmp_path / "home", "new", replaces="a")
    assert names(tmp_path / "home") == ["thesis.tex"]
    (tmp_path / "home" / "a").touch()
    for folder in ("home", "empty"):
        (tmp_path / folder).mkdir(exist_ok=True)
        write_directory(tmp_path / folder, "new", replaces="a")
        assert contents(tmp_path / folder) == ["new"] * 3


def leave_behind(kind: str, path: Path, process: int, host: str = files._HOST, run: str = files._RUN) -> Path:
    """What a writer of ``path`` leaves if it is killed."""
    hidden = files._hidden(path, kind)
    for own, other in ((f".{os.getpid()}.", f".{process}."), (files._HOST, host), (files._RUN, run)):
        hidden = hidden.with_name(hidden.name.replace(own, other))
    write_directory(hidden, "left")
    return hidden


@pytest.mark.parametrize("recover", [recover_directory, lambda path: write_directory(path.with_name("other"), "")])
def test_a_folder_moved_aside_by_a_killed_writer_comes_back(recover: Callable[[Path], None], tmp_path: Path) -> None:
    leave_behind("replaced", tmp_path / "out", dead_process())
    recover(tmp_path / "out")
    assert contents(tmp_path / "out") == ["left"] * 3
    recover_directory(tmp_path / "missing" / "out")


def test_leftovers_of_killed_writers_are_removed_and_those_of_others_stay(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    dead = dead_process()
    leave_behind("partial", tmp_path / "out", dead)
    leave_behind("replaced", tmp_path / "out", dead)
    leave_behind("partial", tmp_path / "out", os.getpid(), run="00000000")  # of a container, before it started again
    running = leave_behind("partial", tmp_path / "out", os.getppid())
    elsewhere = leave_behind("partial", tmp_path / "out", dead, host="00000000")
    with atomic_file(tmp_path / "a") as mine:
        mine.write_text("a")
        clear_leftovers(tmp_path)
        assert names(tmp_path) == sorted([running.name, elsewhere.name, mine.parent.name, "out"])
    assert names(tmp_path) == sorted([running.name, elsewhere.name, "a", "out"])


def test_writers_of_one_file_at_once_do_not_mix(tmp_path: Path) -> None:
    def write(number: int) -> None:
        for _ in range(25):
            atomic_write_bytes(tmp_path / "a", str(number).encode() * 50_000)
            data = (tmp_path / "a").read_bytes()
            assert (len(data), len(set(data))) == (50_000, 1)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert names(tmp_path) == ["a"]


def _replace_often(path: Path, number: int) -> None:
    for _ in range(40):
        write_directory(path, str(number) * 1000)


def test_writers_of_one_folder_at_once_do_not_mix_and_readers_find_it(tmp_path: Path) -> None:
    path = tmp_path / "out"
    write_directory(path, "0" * 1000)
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=_replace_often, args=(path, number)) for number in range(3)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        recover_directory(path)
        clear_leftovers(tmp_path)
    assert [writer.exitcode for writer in writers] == [0] * 3
    assert names(tmp_path) == ["out"]
    assert len(set(contents(path))) == 1
