"""What is written is whole or not there, whoever is killed when, and however many write at once."""

import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from rsrefseg.engines.errors import BadInputError, RSRefSegError
from rsrefseg.engines.system.files import (
    atomic_directory,
    atomic_file,
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_text,
    discard_partials,
    recover_directory,
    sha256_file,
    unwritable,
)
from tests.support import ROOT


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_digest_is_sha256(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_write_makes_its_folders_and_leaves_nothing_else(tmp_path: Path) -> None:
    atomic_write_text(tmp_path / "new" / "deep" / "a.txt", "é")
    assert (tmp_path / "new" / "deep" / "a.txt").read_bytes() == "é".encode()
    assert names(tmp_path / "new" / "deep") == ["a.txt"]


def test_json_holds_any_text(tmp_path: Path) -> None:
    value = {"phrase": "船 🚢", "file": "a\udce9.png"}
    atomic_write_json(tmp_path / "a.json", value)
    text = (tmp_path / "a.json").read_bytes().decode("utf-8")
    assert "船 🚢" in text
    assert text.endswith("}\n")
    assert json.loads(text) == value


def test_a_failed_write_keeps_the_old_content(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def fail() -> None:
        with atomic_file(path) as temporary:
            temporary.write_text("new")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_the_temporary_file_has_the_same_name(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "mask.png") as temporary:
        assert temporary.name == "mask.png"
        temporary.touch()


def test_a_writer_that_wrote_nothing_is_told(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(BadInputError, match="cannot write"), atomic_file(tmp_path / "a"):
        pass
    assert (tmp_path / "a").read_text() == "old"


def test_an_input_that_cannot_be_read_is_not_reported_as_the_output(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), atomic_file(tmp_path / "out"):
        (tmp_path / "input").read_bytes()
    with pytest.raises(FileNotFoundError), atomic_directory(tmp_path / "out"):
        (tmp_path / "input").read_bytes()
    with pytest.raises(OSError, match="image file is truncated"), atomic_file(tmp_path / "out"):
        raise OSError("image file is truncated (3 bytes not processed)")
    with pytest.raises(ValueError, match="mine"), atomic_directory(tmp_path / "out"):
        raise ValueError("mine")
    assert names(tmp_path) == []


def test_an_output_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "file" / "a", tmp_path / "folder", tmp_path / ("x" * 300)):
        with pytest.raises(BadInputError, match=f"cannot write '{path}'.*choose a place") as refusal:
            atomic_write_bytes(path, b"data")
        assert "\n" not in str(refusal.value)
    with pytest.raises(BadInputError, match="there is a file of that name"), atomic_directory(tmp_path / "file"):
        pass
    with pytest.raises(BadInputError, match="cannot write"), atomic_directory(tmp_path / "file" / "a"):
        pass
    assert names(tmp_path) == ["file", "folder"]


def test_a_full_disk_is_told_as_such(tmp_path: Path) -> None:
    for error in (errno.ENOSPC, errno.EDQUOT):
        told = unwritable(tmp_path, OSError(error, os.strerror(error)))
        assert "no space left on the disk" in str(told)
        assert told.exit_code == 2
    with pytest.raises(RSRefSegError, match="no space left"), atomic_file(tmp_path / "a"):
        Path("/dev/full").write_bytes(b"data")
    with pytest.raises(RSRefSegError, match="no space left"), atomic_file(tmp_path / "a"):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")


FULL_DISK = """
    import sys
    from pathlib import Path
    import numpy as np
    from PIL import Image
    from safetensors.numpy import save_file
    from rsrefseg.engines.errors import RSRefSegError
    from rsrefseg.engines.system.files import atomic_directory, atomic_file, atomic_write_bytes

    place = Path(sys.argv[1])
    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8)

    def folder():
        with atomic_directory(place / "out") as out:
            (out / "a").write_bytes(noise.tobytes())

    def picture():
        with atomic_file(place / "a.png") as out:
            Image.fromarray(noise).save(out)

    def tensors():
        with atomic_file(place / "a.safetensors") as out:
            save_file({"a": noise}, out)

    for write in (folder, picture, tensors, lambda: atomic_write_bytes(place / "a", noise.tobytes())):
        try:
            write()
        except RSRefSegError as error:
            print(error)
        print(*place.iterdir())
"""


def test_on_a_disk_that_is_really_full_every_writer_says_so_and_cleans_up(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(FULL_DISK))
    place = tmp_path / "disk"
    place.mkdir()
    mount = f"mount -t tmpfs -o size=512k tmpfs '{place}'"
    if (
        not shutil.which("unshare")
        or subprocess.run(["unshare", "-rm", "sh", "-c", mount], capture_output=True).returncode
    ):
        pytest.skip("no small disk can be mounted here")
    command = f"{mount} && '{sys.executable}' '{script}' '{place}'"
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", command], capture_output=True, text=True, env={"PYTHONPATH": str(ROOT)}
    )
    lines = done.stdout.split("\n")
    assert done.stderr == ""
    assert [line.split(" of ")[0] for line in lines[0:8:2]] == ["no space left on the disk"] * 4
    assert lines[1:8:2] == [""] * 4


def test_a_folder_replaces_the_old_one_as_a_whole(tmp_path: Path) -> None:
    for content in ("one", "two"):
        with atomic_directory(tmp_path / "out") as folder:
            (folder / content).write_text(content)
            assert folder.parent == tmp_path
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["two"]


def test_files_written_atomically_in_a_new_folder_wait_for_no_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder's own writer holds its lock: to wait for that would be to wait for oneself."""

    def waits(_seconds: float) -> None:
        raise AssertionError("waits for a lock")

    monkeypatch.setattr(time, "sleep", waits)
    with atomic_directory(tmp_path / "out") as folder:
        atomic_write_text(folder / "a", "one")
        atomic_write_text(folder / "a", "two")
        with atomic_directory(folder / "inner") as inner:
            atomic_write_text(inner / "b", "three")
    assert (tmp_path / "out" / "a").read_text() == "two"
    assert (tmp_path / "out" / "inner" / "b").read_text() == "three"
    assert names(tmp_path / "out") == ["a", "inner"]


def test_a_failed_folder_leaves_the_old_one(tmp_path: Path) -> None:
    with atomic_directory(tmp_path / "out") as folder:
        (folder / "a").touch()

    def fail() -> None:
        with atomic_directory(tmp_path / "out") as folder:
            (folder / "b").touch()
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert names(tmp_path) == ["out"]
    assert names(tmp_path / "out") == ["a"]


def test_a_folder_of_another_kind_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").touch()
    with pytest.raises(BadInputError, match=r"holds other things \(no bundle.json\)"):
        with_marker(tmp_path / "home")
    (tmp_path / "home" / "bundle.json").touch()
    with_marker(tmp_path / "home")
    assert names(tmp_path / "home") == ["bundle.json"]
    (tmp_path / "empty").mkdir()
    with_marker(tmp_path / "empty")


def with_marker(path: Path) -> None:
    with atomic_directory(path, replaces="bundle.json") as folder:
        (folder / "bundle.json").touch()


def test_a_link_to_a_folder_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    with atomic_directory(tmp_path / "link") as folder:
        (folder / "a").touch()
    assert (tmp_path / "link").is_symlink()
    assert names(tmp_path / "real") == ["a"]


def test_a_folder_moved_aside_is_put_back(tmp_path: Path) -> None:
    replaced = tmp_path / ".out.replaced"
    replaced.mkdir()
    (replaced / "a").touch()
    recover_directory(tmp_path / "out")
    assert names(tmp_path) == ["out"]
    recover_directory(tmp_path / "out")
    recover_directory(tmp_path / "missing" / "out")
    assert names(tmp_path / "out") == ["a"]


def test_what_killed_writers_left_is_cleared_but_not_what_others_write(tmp_path: Path) -> None:
    for name in (".out.partial", f".out.{'0a' * 16}.partial", ".out.replaced"):
        (tmp_path / name / "deep").mkdir(parents=True)
    (tmp_path / ".outer.partial").mkdir()
    with atomic_directory(tmp_path / "out") as first:
        (first / "a").touch()
        discard_partials(tmp_path / "out")
        assert names(tmp_path) == [".out.partial", ".outer.partial", "out"]  # the old folder was put back
        assert names(first) == ["a"]
    assert names(tmp_path) == [".outer.partial", "out"]


def test_a_partial_name_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "a").touch()
    (tmp_path / ".out.partial").symlink_to("precious")
    atomic_write_text(tmp_path / "out", "text")
    assert names(tmp_path / "precious") == ["a"]


def test_writers_of_one_file_at_once_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "a"
    atomic_write_bytes(path, b"0" * 50_000)
    failures: list[BaseException] = []

    def write(number: int) -> None:
        try:
            for _ in range(25):
                atomic_write_bytes(path, str(number).encode() * 50_000)
                data = path.read_bytes()
                assert len(data) == 50_000
                assert len(set(data)) == 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert names(tmp_path) == ["a"]


def write_folders(path: Path, number: int, rounds: int) -> None:
    for _ in range(rounds):
        with atomic_directory(path) as folder:
            for name in "abc":
                (folder / name).write_text(str(number) * 1000)


def test_writers_of_one_folder_at_once_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "out"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_folders, args=(path, number, 15)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert names(tmp_path) == ["out"]
    assert len({(path / name).read_text() for name in "abc"}) == 1


WRITE_FOREVER = """
    import itertools, sys
    from pathlib import Path
    from rsrefseg.engines.system.files import atomic_directory, atomic_write_text

    place = Path(sys.argv[1])
    for number in itertools.count():
        atomic_write_text(place / "file", f"{number}\\n" * 5000)
        with atomic_directory(place / "folder") as folder:
            for name in "abc":
                (folder / name).write_text(f"{number}\\n" * 5000)
        print(number, flush=True)
"""


def test_a_process_killed_at_any_moment_leaves_only_whole_files(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(WRITE_FOREVER))
    place = tmp_path / "place"
    place.mkdir()
    moments = random.Random(5)
    for _ in range(20):
        writer = subprocess.Popen(
            [sys.executable, script, place], stdout=subprocess.PIPE, env={"PYTHONPATH": str(ROOT)}, text=True
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(moments.uniform(0, 0.03))
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        recover_directory(place / "folder")
        written = [(place / "file").read_text(), *((place / "folder" / name).read_text() for name in "abc")]
        assert len(set(written[1:])) == 1
        assert all(len(text.splitlines()) == 5000 and len(set(text.splitlines())) == 1 for text in written)
    write_folders(place / "folder", 7, 1)
    atomic_write_text(place / "file", "end")
    assert names(place) == ["file", "folder"]
