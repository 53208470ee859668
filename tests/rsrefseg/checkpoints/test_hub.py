"""Models of the hub are found in the local cache, or an error is raised quickly."""

import json
import shutil
import socket
import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from rsrefseg.checkpoints.hub import find_model
from rsrefseg.checkpoints.sam_file import SAM_FILES
from rsrefseg.checkpoints.siglip_folder import SIGLIP_FILES
from rsrefseg.engines.errors import MissingPartError
from tests.support.commands import assert_refused_last, run_here
from tests.support.hub_server import hub_server
from tests.support.runs import refused
from tests.support.upstream import brought_config, port_sam, write_siglip_folder

SIGLIP, SAM = "made/siglip-small", "made/sam-small"
CONFIG = brought_config()
Capture = pytest.CaptureFixture[str]


def put_in_cache(cache: Path, name: str, folder: Path) -> None:
    """Store a model as the hub's client does: blobs, a snapshot of links, a reference to the snapshot."""
    root, commit = cache / f"models--{name.replace('/', '--')}", "0123456789abcdef0123456789abcdef01234567"
    for made in ("refs", f"snapshots/{commit}"):
        (root / made).mkdir(parents=True)
    (root / "refs" / "main").write_text(commit)
    for blob in Path(shutil.copytree(folder, root / "blobs")).iterdir():
        (root / "snapshots" / commit / blob.name).symlink_to(Path("..", "..", "blobs", blob.name))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Create a ``$HF_HOME`` whose cache has a small SigLIP and a small SAM. Read-only."""
    root = tmp_path_factory.mktemp("home")
    write_siglip_folder(root / "siglip", CONFIG)
    port_sam(CONFIG).save_pretrained(root / "sam")
    put_in_cache(root / "hub", SIGLIP, root / "siglip")
    put_in_cache(root / "hub", SAM, root / "sam")
    return root


@pytest.fixture
def place(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Use that cache, a hub that refuses every connection, and the small model for every preset."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr("rsrefseg.train.settings.model_config", lambda preset: CONFIG)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_takes_both_models_by_name_and_records_it(place: Path, home: Path, boxes: Path, capsys: Capture) -> None:
    given = ("--sam", SAM, "--siglip", SIGLIP, "--out", "run", "--epochs", "1", "--rank", "2", "--precision", "fp32")
    ran = run_here(capsys, "train", "--data", boxes, *given)
    assert ran.code == 0, ran.err
    files = json.loads(Path("run/run.json").read_text())["base"]["files"]
    assert files["siglip"]["path"].startswith(str(home / "hub" / "models--made--siglip-small" / "snapshots"))
    assert Path("run/tokenizer.json").read_bytes() == (home / "siglip" / "tokenizer.json").read_bytes()
    assert run_here(capsys, "merge", "run").code == 0


def test_what_is_not_cached_is_refused_quickly_with_a_hint(place: Path, boxes: Path, capsys: Capture) -> None:
    started = time.monotonic()
    ran = run_here(capsys, "train", "--data", boxes, "--sam", SAM, "--out", "run", "--siglip", "made/other")
    assert time.monotonic() - started < 5
    assert_refused_last(ran, "'made/other'", "give its path", "hf download made/other")
    assert not Path("run/run.json").exists()


def test_a_cache_that_lacks_a_file_is_no_model(place: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = shutil.copytree(home / "siglip", place / "siglip", ignore=shutil.ignore_patterns("model.safetensors"))
    put_in_cache(place / "hub", SIGLIP, folder)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(place / "hub"))
    with refused(SIGLIP, "not wholly, in the cache", kind=MissingPartError):
        find_model(Path(SIGLIP), SIGLIP_FILES, print)


PATHS = ("siglip", "a/b/c", "./siglip", f"/{SIGLIP}", "made/sam.pth", "weights/siglip", "made/..", "made/", "my/own")


@pytest.mark.parametrize("path", PATHS)
def test_what_is_no_name_or_exists_stays_a_path(place: Path, path: str) -> None:
    Path("weights").mkdir()
    Path("my/own").mkdir(parents=True)
    assert find_model(Path(path), SIGLIP_FILES, print) == Path(path)


def test_a_download_takes_only_what_is_needed(place: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a server on loopback."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(place / "hub"))
    with hub_server() as hub:
        template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        files = {path.name: path.read_bytes() for path in (home / "siglip").iterdir()}
        hub.put("made/new", **files, **{"README.md": b"card"})
        hub.put("made/card", **{"README.md": b"card"})
        reported: list[str] = []
        folder = find_model(Path("made/new"), SIGLIP_FILES, reported.append)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
        assert "'made/new'" in reported[0]
        with refused("'made/tpyo'", "no file or folder"):
            find_model(Path("made/tpyo"), SIGLIP_FILES, print)
        with refused("'made/card'", "has no config.json"):
            find_model(Path("made/card"), SAM_FILES, print)
