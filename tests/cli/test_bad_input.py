"""Wrong images, phrases and bundles raise a one-line error with exit code 2; unusual valid ones work."""

import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import rasterio
from PIL import ExifTags, Image

from tests.support.commands import assert_refused, run_here
from tests.support.made_bundle import change_manifest
from tests.support.places import PHRASE, Capsys, cut_in_half, picture

pytestmark = pytest.mark.usefixtures("one_thread")
BUNDLE, SCENE = Path("bundle"), Path("scene.png")


def claim_size(path: Path, width: int, height: int) -> None:
    """Declare a larger size in the header of a PNG."""
    data = bytearray(path.read_bytes())
    data[16:24] = struct.pack(">II", width, height)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    path.write_bytes(data)


def change_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


# What else may be wrong with an image or a bundle: tests/engines/test_images.py and test_bundle.py.
SPOILED: dict[str, tuple[Callable[[], Any], str]] = {
    "image is a folder": (lambda: (SCENE.unlink(), SCENE.mkdir()), "no image in 'scene.png'"),
    "image is empty": (lambda: SCENE.write_bytes(b""), "'scene.png' is empty"),
    "image is text": (lambda: SCENE.write_text("not an image\n" * 9), "'scene.png' is not an image"),
    "image is cut": (lambda: cut_in_half(SCENE), "'scene.png'"),
    "image is a giant": (lambda: claim_size(SCENE, 60_000, 60_000), "raise the limit with --max-pixels"),
    "image is a link to itself": (lambda: (SCENE.unlink(), SCENE.symlink_to(SCENE)), "'scene.png'"),
    "manifest is cut": (lambda: cut_in_half(BUNDLE / "bundle.json"), "bundle.json"),
    "newer schema": (lambda: change_manifest(BUNDLE, lambda value: value.update(schema_version=3)), "version 3"),
    "graph is missing": (lambda: (BUNDLE / "sam_decoder.onnx").unlink(), "bundle/sam_decoder.onnx' is missing"),
    "graph was changed": (lambda: change_byte(BUNDLE / "siglip_text.onnx"), "bundle/siglip_text.onnx' was changed"),
    "tokenizer was changed": (lambda: change_byte(BUNDLE / "tokenizer.json"), "bundle/tokenizer.json' was changed"),
}


@pytest.mark.parametrize("fault", SPOILED)
def test_a_file_that_cannot_be_used_is_named(fault: str, place: Path, capsys: Capsys) -> None:
    spoil, fact = SPOILED[fault]
    spoil()
    assert_refused(run_here(capsys, "infer", SCENE, PHRASE), fact)
    assert not Path("results").exists()


def test_every_command_that_reads_a_bundle_refuses_a_changed_one(place: Path, boxes: Path, capsys: Capsys) -> None:
    change_byte(BUNDLE / "attn_prompter.onnx")
    for arguments in (
        ["parity"],
        ["eval", "--data", boxes, "--split", "val", "--bundle", "bundle"],
        ["bench", "--backends", "onnxruntime", "--rounds", "3"],
    ):
        ran = run_here(capsys, *arguments)
        assert (ran.code, ran.out) == (2, ""), arguments
        assert "bundle/attn_prompter.onnx' was changed" in ran.err.splitlines()[-1]
        assert "Traceback" not in ran.err


def test_parity_without_reference_samples_is_an_error(place: Path, capsys: Capsys) -> None:
    change_manifest(BUNDLE, lambda value: value.update(reference=None))
    assert_refused(run_here(capsys, "parity"), "has no reference samples")


def test_a_backend_this_machine_lacks_is_never_replaced(place: Path, capsys: Capsys) -> None:
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has it")
    ran = run_here(capsys, "infer", SCENE, PHRASE, "--backend", "onnxruntime-cuda")
    assert_refused(ran, "CUDAExecutionProvider", "pip install 'rsrefseg[cuda]'")


def test_masks_have_the_size_of_the_image_as_it_is_shown(place: Path, capsys: Capsys) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    picture().save("turned.jpg", exif=exif)
    deep = np.random.default_rng(1).integers(0, 4096, (40, 60)).astype(np.uint16)
    Image.fromarray(deep).save("deep.tif")
    picture(1, 1).save("pixel", format="PNG")
    for name, size in {"turned.jpg": (40, 60), "deep.tif": (60, 40), "pixel": (1, 1)}.items():
        ran = run_here(capsys, "infer", name, PHRASE, "--json")
        assert ran.code == 0, ran.err
        mask, *_, document = map(Path, ran.result["files"])
        with rasterio.open(mask) if mask.suffix == ".tif" else Image.open(mask) as stored:
            assert (stored.width, stored.height) == size
        written = json.loads(document.read_text(encoding="utf-8"))
        assert (written["width"], written["height"]) == size


@pytest.mark.parametrize(
    "phrase", ["the red square 🚢", "THE RED\nSQUARE", "the‮ red\u200b square", "the red square; rm -rf /", "red " * 200]
)
def test_odd_phrases_with_a_meaning_work(phrase: str, place: Path, capsys: Capsys) -> None:
    ran = run_here(capsys, "infer", SCENE, phrase, "--max-pixels", "2400", "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["results"][0]["phrase"] == phrase
    assert {path.parent for path in Path("results").rglob("*")} == {Path("results")}
