"""Commands that write to a full disk print a one-line error."""

import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.exported import Exported
from tests.support.places import PHRASE, picture

COMMANDS = {
    "infer": "infer large.png {phrase} --tile off --bundle {bundle} --out disk/results",
    "data synth": "data synth disk/scenes --train 9 --val 0 --test 0",
    "train": "train --data {data} --from-scratch --out disk/run",
    "export": "export {run} --out disk/bundle",
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_full_disk_is_one_line(name: str, exported: Exported, tmp_path: Path) -> None:
    """128 kB, mounted in a namespace of its own."""
    (tmp_path / "disk").mkdir()
    mount = "mount -t tmpfs -o size=128k tmpfs disk"
    alone = ["unshare", "-rm", "sh", "-c"]
    if not shutil.which("unshare") or subprocess.run([*alone, mount], cwd=tmp_path, capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    picture(400, 400).save(tmp_path / "large.png")
    paths = {"bundle": exported.bundle, "data": exported.data, "run": exported.run, "phrase": PHRASE}
    command = COMMANDS[name].format_map({key: shlex.quote(str(value)) for key, value in paths.items()})
    script = f"{mount} && export PYTHONPATH='{ROOT}' && exec '{sys.executable}' -m rsrefseg {command}"
    done = subprocess.run([*alone, script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert "disk/" in done.stderr
    assert "no space left" in done.stderr or "MiB free" in done.stderr
