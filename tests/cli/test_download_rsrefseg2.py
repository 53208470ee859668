"""``rsrefseg download`` of a trained RSRefSeg 2, from a server on loopback, to masks."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from rsrefseg.engines import doctor
from rsrefseg.engines.hub import bases
from tests.support.commands import run_here
from tests.support.hub_server import Hub, hub_of_this_process
from tests.support.places import Capsys
from tests.support.upstream2 import PublicRSRefSeg2, small_config2, write_public2

CHECKPOINT, SIGLIP = "KyanChen/RSRefSeg2", "google/siglip2-so400m-patch16-512"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    file = write_public2(tmp_path, PublicRSRefSeg2(small_config2()))
    tokenizer = tmp_path / "siglip" / "tokenizer.json"
    with hub_of_this_process(tmp_path, monkeypatch) as server:
        server.put(CHECKPOINT, **{"rrsisd.pth": file.read_bytes(), "refsegrs.pth": b"another file"})
        server.put(SIGLIP, **{"tokenizer.json": tokenizer.read_bytes(), "model.safetensors": b"x"})
        yield server


def ability() -> tuple[bool, str]:
    name = "convert the published checkpoint rsrefseg2-rrsisd"
    return next((one.works, one.detail) for one in doctor.examine().abilities if one.name == name)


def test_a_checkpoint_is_downloaded_with_its_tokenizer_and_converted(
    hub: Hub, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    works, detail = ability()
    assert not works
    assert "`rsrefseg download rsrefseg2-rrsisd` gets them (KyanChen/RSRefSeg2 5.79 GB" in detail
    ran = run_here(capsys, "download", "rsrefseg2-rrsisd", "--json")
    assert ran.code == 0, ran.err
    assert [Path(file["path"]).name for file in ran.result["files"]] == ["rrsisd.pth", "tokenizer.json"]
    assert ran.result["train"] is None
    works, detail = ability()
    assert works, detail
    assert ran.result["files"][0]["sha256"][:12] in detail
    monkeypatch.setattr("rsrefseg.runs.convert.model_config", lambda _: small_config2())
    converted = run_here(capsys, *ran.result["convert"].removeprefix("rsrefseg ").split())
    assert converted.code == 0, converted.err
    assert Path("runs/rsrefseg2-rrsisd/merged.safetensors").is_file()


def test_a_file_with_another_digest_than_the_known_one_is_refused(hub: Hub, capsys: Capsys) -> None:
    assert bases.CHECKPOINTS["rsrefseg2-refsegrs"][0].sha256 is not None
    ran = run_here(capsys, "download", "rsrefseg2-refsegrs")
    assert ran.code == 2
    assert "refsegrs.pth" in ran.err.splitlines()[-1]
    assert "SHA-256" in ran.err.splitlines()[-1]
