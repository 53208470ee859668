"""`rsrefseg infer` writes its results and nothing else, and neither looks up a name nor opens a connection."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.commands import ENTRY
from tests.support.made_bundle import make_bundle
from tests.support.places import picture

# Telemetry sends in the background, so the process stays for a while.
STAYS = "import atexit, time; atexit.register(time.sleep, 6)\n"
# Preloaded: it sees what C and C++ code does as well. Sockets between processes of this machine are no connections.
RECORDER = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <netdb.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

static void note(const char *what) {
    FILE *file = fopen(getenv("NETWORK_LOG"), "a");
    fprintf(file, "%s\n", what);
    fclose(file);
}

int getaddrinfo(const char *node, const char *service, const struct addrinfo *hints, struct addrinfo **result) {
    note(node ? node : "getaddrinfo");
    return EAI_FAIL;
}

int socket(int domain, int type, int protocol) {
    static int (*real)(int, int, int);
    if (!real) real = dlsym(RTLD_NEXT, "socket");
    if (domain == AF_INET || domain == AF_INET6) note("socket");
    return real(domain, type, protocol);
}
"""
WRITES_AND_CONNECTS = "import socket, pathlib; pathlib.Path.home().joinpath('x').touch(); socket.socket()"


@pytest.fixture(scope="module")
def recorder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if sys.platform != "linux" or (compiler := shutil.which("cc")) is None:
        pytest.skip("the recorder of network calls needs Linux and a C compiler")
    folder = tmp_path_factory.mktemp("recorder")
    (folder / "recorder.c").write_text(RECORDER)
    command = [compiler, "-shared", "-fPIC", "-o", "recorder.so", "recorder.c", "-ldl"]
    subprocess.run(command, cwd=folder, check=True)
    return folder / "recorder.so"


def watched(recorder: Path, folder: Path, code: str, *arguments: str) -> tuple[list[str], list[str]]:
    """Run Python in a new home folder; return its files and network calls."""
    home, log = folder / "home", folder / "network.log"
    (home / "tmp").mkdir(parents=True)
    before = files_of(folder)
    environment = {
        "PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1",
        "HOME": str(home), "TMPDIR": str(home / "tmp"), "XDG_CACHE_HOME": str(home / ".cache"),
        "LD_PRELOAD": str(recorder), "NETWORK_LOG": str(log),
    }  # fmt: skip
    subprocess.run([sys.executable, "-c", STAYS + code, *arguments], cwd=folder, env=environment, check=True)
    calls = log.read_text().splitlines() if log.exists() else []
    return sorted(files_of(folder) - before - {"network.log"}), calls


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir()}


def test_the_recorder_sees_files_and_sockets(recorder: Path, tmp_path: Path) -> None:
    assert watched(recorder, tmp_path, WRITES_AND_CONNECTS) == (["home/x"], ["socket"])


@pytest.mark.parametrize("backend", ["auto", "onnxruntime", "openvino", "openvino-fp32"])
def test_infer_is_quiet(recorder: Path, tmp_path: Path, backend: str) -> None:
    if backend.startswith("openvino"):
        pytest.importorskip("openvino")
    make_bundle(tmp_path / "bundle")
    picture().save(tmp_path / "scene.png")
    files, calls = watched(recorder, tmp_path, ENTRY, "infer", "scene.png", "the red square", "--backend", backend)
    results = [file for file in files if not file.startswith("home/.cache/rsrefseg/")]
    assert results == [
        "results/scene.json",
        "results/scene_overlay.png",
        "results/scene_the-red-square-798eb567_mask.png",
    ]
    assert calls == []
