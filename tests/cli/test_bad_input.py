"""Pictures, phrases and bundles a user may get wrong: one clear line that names it, exit code 2. And what must work."""

import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image

from tests.support.commands import assert_refused, run_here
from tests.support.made_bundle import change_manifest, make_bundle
from tests.support.places import PHRASE, Capsys, beside_bundle, cut_in_half, picture

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("made") / "bundle").root


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return beside_bundle(made, tmp_path, monkeypatch)


@pytest.fixture
def data(place: Path, boxes: Path) -> Path:
    """A data set of one's own, to be spoiled."""
    shutil.copytree(boxes, "data")
    return Path("data")


BUNDLE = Path("bundle")


# Images


def empty_png(width: int, height: int) -> bytes:
    """A PNG that says how large it is and holds next to nothing."""
    chunks = {b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT": zlib.compress(b""), b"IEND": b""}
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def write_cut_png(path: Path) -> None:
    picture(200, 200).save(path, format="PNG")
    cut_in_half(path)


# What else may be wrong with an image, and which kinds are read: tests/engines/test_images.py.
BAD_IMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda path: None, "no image at 'bad.png'"),
    "a folder": (lambda path: path.mkdir(), "'bad.png' is a folder"),
    "empty": (lambda path: path.touch(), "'bad.png' is empty"),
    "text": (lambda path: path.write_text("not an image\n" * 9), "'bad.png' is not an image"),
    "cut short": (write_cut_png, "'bad.png'"),
    "a giant": (lambda path: path.write_bytes(empty_png(60_000, 60_000)), "raise the limit with --max-pixels"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "'bad.png'"),
}


@pytest.mark.parametrize("kind", BAD_IMAGES)
def test_images_that_cannot_be_used(kind: str, place: Path, capsys: Capsys) -> None:
    make, fact = BAD_IMAGES[kind]
    make(Path("bad.png"))
    assert_refused(run_here(capsys, "infer", "bad.png", PHRASE), fact)
    assert not Path("results").exists()


def test_the_limit_of_pixels_is_named_and_can_be_lifted(place: Path, capsys: Capsys) -> None:
    refused = run_here(capsys, "infer", "scene.png", PHRASE, "--max-pixels", "2399")
    assert_refused(refused, "scene.png", "60 x 40 = 2,400 pixels", "2,399", "--max-pixels")
    assert run_here(capsys, "infer", "scene.png", PHRASE, "--max-pixels", "2400").code == 0


def test_masks_have_the_size_of_the_image_as_it_is_shown(place: Path, capsys: Capsys) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    picture().save("turned.jpg", exif=exif)
    deep = np.random.default_rng(1).integers(0, 4096, (40, 60)).astype(np.uint16)
    Image.fromarray(deep).save("deep.tif")
    picture(1, 1).save("pixel", format="PNG")
    for name, size in {"turned.jpg": (40, 60), "deep.tif": (60, 40), "pixel": (1, 1)}.items():
        assert_masks_have(size, name, capsys)


def assert_masks_have(size: tuple[int, int], name: str, capsys: Capsys) -> None:
    ran = run_here(capsys, "infer", name, PHRASE, "a small blue square", "--json")
    assert ran.code == 0, ran.err
    files = [Path(file) for file in json.loads(ran.out)["files"]]
    for file in files[:2]:
        with Image.open(file) as mask:
            assert mask.size == size
            assert mask.mode == "L"
            assert {value for _, value in mask.getcolors() or []} <= {0, 255}
    with Image.open(files[2]) as overlay:
        assert overlay.size[0] >= size[0]
    document = json.loads(files[3].read_text(encoding="utf-8"))
    assert (document["width"], document["height"]) == size


# Phrases


@pytest.mark.parametrize(
    ("phrase", "fact"), [("", "empty phrase"), ("x" * 5000, "5000 characters"), ("🚢🚢🚢", "no known word")]
)
def test_phrases_that_say_nothing(phrase: str, fact: str, place: Path, capsys: Capsys) -> None:
    assert_refused(run_here(capsys, "infer", "scene.png", PHRASE, phrase), fact)
    assert not Path("results").exists(), "nothing is written for the phrases before it"


@pytest.mark.parametrize(
    "phrase", ["the red square 🚢", "THE RED\nSQUARE", "the‮ red\u200b square", "the red square; rm -rf /", "red " * 200]
)
def test_odd_phrases_with_a_meaning_work(phrase: str, place: Path, capsys: Capsys) -> None:
    ran = run_here(capsys, "infer", "scene.png", phrase, "--json")
    assert ran.code == 0, ran.err
    assert json.loads(ran.out)["results"][0]["phrase"] == phrase
    assert {path.parent for path in Path("results").rglob("*")} == {Path("results")}


# Bundles


def change_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def replace_by_a_file() -> None:
    shutil.rmtree("bundle")
    Path("bundle").write_text("")


# What else may be wrong with a bundle: tests/engines/test_bundle.py.
BAD_BUNDLES: dict[str, tuple[Callable[[], Any], str]] = {
    "missing": (lambda: shutil.rmtree("bundle"), "no bundle at 'bundle': make one with `rsrefseg export`"),
    "a file": (replace_by_a_file, "'bundle'"),
    "manifest cut": (lambda: cut_in_half(Path("bundle/bundle.json")), "bundle.json"),
    "newer schema": (lambda: change_manifest(BUNDLE, lambda value: value.update(schema_version=3)), "version 3"),
    "graph missing": (lambda: Path("bundle/sam_decoder.onnx").unlink(), "bundle/sam_decoder.onnx' is missing"),
    "graph changed": (lambda: change_byte(Path("bundle/siglip_text.onnx")), "bundle/siglip_text.onnx' was changed"),
    "tokenizer changed": (lambda: change_byte(Path("bundle/tokenizer.json")), "bundle/tokenizer.json' was changed"),
}


@pytest.mark.parametrize("fault", BAD_BUNDLES)
def test_bundles_that_are_not_what_they_should_be(fault: str, place: Path, capsys: Capsys) -> None:
    spoil, told = BAD_BUNDLES[fault]
    spoil()
    assert_refused(run_here(capsys, "infer", "scene.png", PHRASE), told)
    assert not Path("results").exists()


def test_every_command_that_reads_a_bundle_refuses_a_changed_one(place: Path, data: Path, capsys: Capsys) -> None:
    change_byte(Path("bundle/attn_prompter.onnx"))
    told = "bundle/attn_prompter.onnx' was changed"
    for arguments in (
        ["infer", "scene.png", PHRASE],
        ["parity"],
        ["eval", "--data", "data", "--split", "val", "--bundle", "bundle"],
        ["bench", "--backends", "onnxruntime", "--rounds", "3"],
    ):
        ran = run_here(capsys, *arguments)
        assert (ran.code, ran.out) == (2, ""), arguments
        assert told in ran.err.splitlines()[-1]
        assert "Traceback" not in ran.err


def test_parity_without_reference_samples_says_so(place: Path, capsys: Capsys) -> None:
    change_manifest(BUNDLE, lambda value: value.update(reference=None))
    assert_refused(run_here(capsys, "parity"), "has no reference samples")


@pytest.mark.parametrize(
    "arguments",
    [
        ["infer", "scene.png", PHRASE, "--backend", "tensorrrt"],
        ["parity", "--backend", "tensorrrt"],
        ["eval", "--data", "data", "--split", "val", "--backend", "tensorrrt"],
        ["bench", "--backends", "onnxruntime,tensorrrt"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_an_unknown_backend_is_named_with_those_there_are(arguments: list[str], data: Path, capsys: Capsys) -> None:
    assert_refused(run_here(capsys, *arguments), "unknown ", "'tensorrrt': known are ", "auto, onnxruntime, ")


def test_a_backend_this_machine_lacks_is_never_replaced(place: Path, capsys: Capsys) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has it")
    ran = run_here(capsys, "infer", "scene.png", PHRASE, "--backend", "onnxruntime-cuda")
    assert_refused(ran, "CUDAExecutionProvider", "pip install 'rsrefseg[cuda]'")
