"""``rsrefseg download``: the published weights, from a server on loopback."""

import hashlib
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from safetensors.torch import save_file

from rsrefseg.engines import doctor
from tests.support.commands import assert_refused, run_here
from tests.support.hub_server import Hub, hub_of_this_process
from tests.support.places import Capsys
from tests.support.upstream import brought_config, segment_anything_sam, write_siglip_folder

CONFIG = brought_config()
SAM, SIGLIP = "kornia/sam", "google/siglip-so400m-patch14-384"
SAM_FILE = "sam_vit_b_01ec64.safetensors"
ABILITY = "train preset b from published weights"


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, bytes]]:
    """Create small weights in the layouts of both repositories, beside files that nobody needs."""
    folder = tmp_path_factory.mktemp("published")
    save_file(segment_anything_sam(CONFIG).state_dict(), folder / SAM_FILE)
    siglip = write_siglip_folder(folder / "siglip", CONFIG)
    return {
        SAM: {SAM_FILE: (folder / SAM_FILE).read_bytes(), "sam_vit_l_0b3195.safetensors": b"l", "README.md": b"x"},
        SIGLIP: {path.name: path.read_bytes() for path in siglip.iterdir()} | {"flax_model.msgpack": b"x"},
    }


@pytest.fixture
def hub(published: dict[str, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with hub_of_this_process(tmp_path, monkeypatch) as server:
        for name, files in published.items():
            server.put(name, **files)
        yield server


def ability() -> tuple[bool, str]:
    return next((one.works, one.detail) for one in doctor.examine().abilities if one.name == ABILITY)


def test_a_preset_is_downloaded_and_trained_on(
    hub: Hub, published: dict[str, dict[str, bytes]], boxes: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    works, detail = ability()
    assert not works
    assert "`rsrefseg download b`" in detail
    assert "3.51 GB" in detail
    ran = run_here(capsys, "download", "b", "--json")
    assert ran.code == 0, ran.err
    sent = {Path(entry).name for entry in hub.requests if "/resolve/" in entry}
    assert sent == {SAM_FILE, *published[SIGLIP]} - {"flax_model.msgpack"}
    for file in ran.result["files"]:
        content = Path(file["path"]).read_bytes()
        assert content in (published[SAM].get(Path(file["path"]).name), published[SIGLIP].get(Path(file["path"]).name))
        assert (file["sha256"], file["size_bytes"]) == (hashlib.sha256(content).hexdigest(), len(content))
    works, detail = ability()
    assert works
    assert hashlib.sha256(published[SAM][SAM_FILE]).hexdigest()[:12] in detail
    monkeypatch.setattr("rsrefseg.train.settings.model_config", lambda preset: CONFIG)
    command = ran.result["train"].removeprefix("rsrefseg ").replace("PATH", str(boxes)).split()
    few = ("--out", "run", "--epochs", "1", "--rank", "2", "--precision", "fp32", "--workers", "0")
    trained = run_here(capsys, *command, *few)
    assert trained.code == 0, trained.err


def test_a_broken_connection_is_continued_and_only_missing_files_are_fetched(
    hub: Hub, published: dict[str, dict[str, bytes]], capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500)  # only whole chunks are kept
    hub.cut_after = 1000
    ran = run_here(capsys, "download", "b", "--json")
    assert ran.code == 0, ran.err
    assert hub.ranges == ["bytes=1000-"]
    (sam,) = (file for file in ran.result["files"] if file["path"].endswith(SAM_FILE))
    assert sam["sha256"] == hashlib.sha256(published[SAM][SAM_FILE]).hexdigest()
    next(Path("hub").rglob("config.json")).unlink()
    hub.requests.clear()
    assert run_here(capsys, "download", "b").code == 0
    assert {Path(entry).name for entry in hub.requests if "/resolve/" in entry} == {"config.json"}


def test_a_damaged_file_and_a_missing_network_are_refused(
    hub: Hub, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert_refused(run_here(capsys, "download", "tiny"), "'tiny'", "b, l")
    assert run_here(capsys, "download", "b").code == 0
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        closed = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with monkeypatch.context() as patch:
        patch.setattr(constants, "ENDPOINT", closed)
        offline = run_here(capsys, "download", "b", "--json")
        assert offline.code == 0
        assert "taken from the cache" in offline.err
        assert_refused(run_here(capsys, "download", "l"), "'kornia/sam'", "check the network")
    weights = next(Path("hub").rglob(SAM_FILE)).resolve()
    weights.write_bytes(b"x" + weights.read_bytes()[1:])
    assert_refused(run_here(capsys, "download", "b"), SAM_FILE, "SHA-256")


def test_without_the_client_one_line_names_the_extra(hub: Hub, capsys: Capsys, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    for command in (("download", "b"), ("infer", "x.png", "x", "--bundle", "hf://made/boxes")):
        assert_refused(run_here(capsys, *command), "pip install 'rsrefseg[hub]'")
    works, detail = ability()
    assert not works
    assert "rsrefseg[hub]" in detail
    assert "rsrefseg download b" in detail
