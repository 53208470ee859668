"""Ctrl-C while several processes read a data set."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil

from rsrefseg.data.rrsisd_writer import write_rrsisd
from tests.support import ROOT
from tests.support.made_data import HEIGHT, WIDTH, referral


def test_an_interrupted_check_ends_in_one_line(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    write_rrsisd(tmp_path / "set", [("train", image, [referral()])] * 3000)
    command = [sys.executable, "-m", "rsrefseg", "data", "check", str(tmp_path / "set"), "--workers", "2"]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True)
    started = psutil.Process(process.pid)
    while len(started.children()) < 3 and process.poll() is None:  # two that read, and multiprocessing's own
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: every process of the group
    try:
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert stderr == "rsrefseg: interrupted\n"
