"""What a user may get wrong, command by command: one clear line that names it, exit code 2. And what must work."""

import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from commands import assert_refused, run_here
from engines.bundle import Bundle
from engines.manifest import seal
from exported import Exported
from made_bundle import make_bundle
from rsrefseg.data.masks import encode_mask

PHRASE = "the red square"
RRSISD = Path("rrsisd")
IMAGES = Path("images/rrsisd/JPEGImages")
Capsys = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("made") / "bundle").root


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder a user stands in, with a bundle and a picture."""
    for variable in ("RSREFSEG_BUNDLE", "RSREFSEG_DEBUG"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, "bundle")
    picture().save("scene.png")
    return tmp_path


@pytest.fixture
def data(place: Path, boxes: Path) -> Path:
    """A data set of one's own, to be spoiled."""
    shutil.copytree(boxes, "data")
    return Path("data")


def picture(width: int = 60, height: int = 40) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


# Pictures


def cut_in_half(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty_png(width: int, height: int) -> bytes:
    """A PNG that says how large it is and holds next to nothing."""
    chunks = {b"IHDR": struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0), b"IDAT": zlib.compress(b""), b"IEND": b""}
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in chunks.items()
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def write_cut_jpeg(path: Path) -> None:
    picture(200, 200).save(path, format="JPEG")
    cut_in_half(path)


def write_cut_png(path: Path) -> None:
    picture(200, 200).save(path, format="PNG")
    cut_in_half(path)


def write_noise_after_signature(path: Path) -> None:
    path.write_bytes(b"\xff\xd8\xff" + bytes(range(256)))


def write_five_bands(path: Path) -> None:
    """An 8-bit TIFF with more bands than a picture has."""
    entries = [(256, 3, 1, 4), (257, 3, 1, 4), (258, 3, 1, 8), (262, 3, 1, 1), (277, 3, 1, 5), (279, 4, 1, 80)]
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    path.write_bytes(b"II*\0" + struct.pack("<I", 8) + directory + struct.pack("<I", 0) + bytes(80))


BAD_PICTURES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "missing": (lambda path: None, "no image at 'bad.png'"),
    "a folder": (lambda path: path.mkdir(), "'bad.png' is a folder"),
    "empty": (lambda path: path.touch(), "'bad.png' is empty"),
    "text": (lambda path: path.write_text("not a picture\n" * 9), "'bad.png' is not an image"),
    "a cut JPEG": (write_cut_jpeg, "'bad.png'"),
    "a cut PNG": (write_cut_png, "'bad.png'"),
    "noise": (write_noise_after_signature, "'bad.png'"),
    "too many bands": (write_five_bands, "'bad.png' has 5 bands"),
    "a header only": (lambda path: path.write_bytes(empty_png(50, 50)), "'bad.png'"),
    "a giant": (lambda path: path.write_bytes(empty_png(60_000, 60_000)), "raise the limit with --max-pixels"),
    "a link to itself": (lambda path: path.symlink_to(path.name), "'bad.png'"),
}


@pytest.mark.parametrize("kind", BAD_PICTURES)
def test_pictures_that_cannot_be_used(kind: str, place: Path, capsys: Capsys) -> None:
    make, told = BAD_PICTURES[kind]
    make(Path("bad.png"))
    assert_refused(run_here(capsys, "infer", "bad.png", PHRASE), told)
    assert not Path("results").exists()


def test_the_limit_of_pixels_is_named_and_can_be_lifted(place: Path, capsys: Capsys) -> None:
    refused = run_here(capsys, "infer", "scene.png", PHRASE, "--max-pixels", "2399")
    assert_refused(refused, "scene.png", "60 x 40 = 2,400 pixels", "2,399", "--max-pixels")
    assert run_here(capsys, "infer", "scene.png", PHRASE, "--max-pixels", "2400").code == 0


def deep(channels: int, bits: int) -> np.ndarray:
    shape = (40, 60, channels) if channels > 1 else (40, 60)
    return np.random.default_rng(1).integers(0, 2**bits, shape).astype(np.uint16)


def write_deep_colour(path: Path) -> None:
    import cv2

    cv2.imwrite(str(path), deep(3, 12))


GOOD_PICTURES: dict[str, tuple[str, Callable[[Path], Any], tuple[int, int]]] = {
    "one pixel": (".png", lambda path: picture(1, 1).save(path), (1, 1)),
    "one row": (".png", lambda path: picture(300, 1).save(path), (300, 1)),
    "16 bits, grey": (".png", lambda path: Image.fromarray(deep(1, 16)).save(path), (60, 40)),
    "16 bits, grey TIFF": (".tif", lambda path: Image.fromarray(deep(1, 11)).save(path), (60, 40)),
    "16 bits, colour": (".png", write_deep_colour, (60, 40)),
    "16 bits, colour TIFF": (".tif", write_deep_colour, (60, 40)),
    "grey": (".png", lambda path: picture().convert("L").save(path), (60, 40)),
    "grey and alpha": (".png", lambda path: picture().convert("LA").save(path), (60, 40)),
    "black and white": (".png", lambda path: picture().convert("1").save(path), (60, 40)),
    "palette": (".png", lambda path: picture().quantize(16).save(path), (60, 40)),
    "palette, transparent": (".gif", lambda path: picture().quantize(16).save(path, transparency=3), (60, 40)),
    "CMYK": (".jpg", lambda path: picture().convert("CMYK").save(path), (60, 40)),
    "alpha": (".png", lambda path: picture().convert("RGBA").save(path), (60, 40)),
    "float": (".tif", lambda path: Image.fromarray(deep(1, 8).astype(np.float32) / 255).save(path), (60, 40)),
    "JPEG 2000": (".jp2", lambda path: picture().save(path), (60, 40)),
    "WebP": (".webp", lambda path: picture().save(path), (60, 40)),
    "a wrong suffix": (".txt", lambda path: picture().save(path, format="PNG"), (60, 40)),
    "no suffix": ("", lambda path: picture().save(path, format="PNG"), (60, 40)),
}


@pytest.mark.parametrize("kind", GOOD_PICTURES)
def test_pictures_of_every_usual_kind_work(kind: str, place: Path, capsys: Capsys) -> None:
    suffix, write, size = GOOD_PICTURES[kind]
    write(Path(f"picture{suffix}"))
    assert_masks_have(size, f"picture{suffix}", capsys)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_masks_lie_over_the_picture_as_it_is_shown(orientation: int, place: Path, capsys: Capsys) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    picture().save("turned.jpg", exif=exif)
    assert_masks_have((40, 60) if orientation >= 5 else (60, 40), "turned.jpg", capsys)


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
    ("phrase", "told"),
    [
        ("", "empty phrase"),
        (" \t\n ", "empty phrase"),
        ("a red square " * 400, "5200 characters"),
        ("x" * 5000, "5000 characters"),
        ("🚢🚢🚢", "no known word"),
        ("!?.,", "no known word"),
        ("qwertz", "no known word"),
    ],
    ids=lambda value: repr(value[:12]),
)
def test_phrases_that_say_nothing(phrase: str, told: str, place: Path, capsys: Capsys) -> None:
    assert_refused(run_here(capsys, "infer", "scene.png", phrase), told)
    assert_refused(run_here(capsys, "infer", "scene.png", PHRASE, phrase), told)
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


def reseal(change: Callable[[dict[str, Any]], Any]) -> None:
    """Change the manifest and make its own digest fit, as another release would write it."""
    path = Path("bundle/bundle.json")
    document = json.loads(path.read_text(encoding="utf-8"))
    change(document)
    path.write_bytes(seal(document))


def replace_by_a_file() -> None:
    shutil.rmtree("bundle")
    Path("bundle").write_text("")


BAD_BUNDLES: dict[str, tuple[Callable[[], Any], str]] = {
    "missing": (lambda: shutil.rmtree("bundle"), "no bundle at 'bundle': make one with `rsrefseg export`"),
    "a file": (replace_by_a_file, "'bundle' is no bundle"),
    "empty": (lambda: [path.unlink() for path in Path("bundle").iterdir()], "holds no bundle.json"),
    "manifest cut": (lambda: cut_in_half(Path("bundle/bundle.json")), "bundle.json' is no readable JSON"),
    "manifest changed": (lambda: change_byte(Path("bundle/bundle.json")), "bundle"),
    "newer schema": (lambda: reseal(lambda document: document.update(schema_version=2)), "schema version 2"),
    "no schema": (lambda: reseal(lambda document: document.pop("schema_version")), "schema version None"),
    "path outside": (
        lambda: reseal(lambda document: document["tokenizer"].update(name="../tokenizer.json")),
        "'../tokenizer.json'",
    ),
    "graph missing": (lambda: Path("bundle/sam_decoder.onnx").unlink(), "bundle/sam_decoder.onnx' is missing"),
    "graph cut": (lambda: cut_in_half(Path("bundle/sam_encoder.onnx")), "bundle/sam_encoder.onnx' is cut short"),
    "graph changed": (lambda: change_byte(Path("bundle/siglip_text.onnx")), "bundle/siglip_text.onnx' was changed"),
    "weights changed": (
        lambda: change_byte(Path("bundle/siglip_text.onnx.data")),
        "bundle/siglip_text.onnx.data' was changed",
    ),
    "tokenizer changed": (lambda: change_byte(Path("bundle/tokenizer.json")), "bundle/tokenizer.json' was changed"),
    "tokenizer missing": (lambda: Path("bundle/tokenizer.json").unlink(), "bundle/tokenizer.json' is missing"),
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
    reseal(lambda document: document.update(reference=None))
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


# Output


def test_output_folders_that_cannot_be_written(place: Path, data: Path, capsys: Capsys) -> None:
    Path("taken").write_text("a file")
    for out in ("taken", "taken/deeper", "/proc/rsrefseg"):
        assert_refused(run_here(capsys, "infer", "scene.png", PHRASE, "--out", out), out)
        train = run_here(capsys, "train", "--data", "data", "--from-scratch", "--out", out)
        assert_refused(train, out)
        synth = run_here(capsys, "data", "synth", out, "--train", "1", "--val", "0", "--test", "0", "--size", "64")
        assert_refused(synth, out)
        assert_refused(run_here(capsys, "data", "convert", "data", f"{out}/a.jsonl"), out)
    assert_refused(run_here(capsys, "data", "convert", "data", "/proc"), "/proc")
    assert Path("taken").read_text() == "a file"


ON_A_FULL_DISK = """
    import io, json, sys
    from contextlib import redirect_stderr, redirect_stdout
    import cli

    for arguments in json.loads(sys.argv[1]):
        told = io.StringIO()
        with redirect_stderr(told), redirect_stdout(io.StringIO()):
            code, _ = cli.run_command(arguments)
        print(json.dumps([code, told.getvalue()]))
"""


def test_a_disk_that_is_really_full(place: Path, data: Path, exported: Exported) -> None:
    """A disk of 128 kB, mounted in a namespace of its own."""
    disk = place / "disk"
    disk.mkdir()
    mount = f"mount -t tmpfs -o size=128k tmpfs '{disk}'"
    probe = ["unshare", "-rm", "sh", "-c", mount]
    if not shutil.which("unshare") or subprocess.run(probe, capture_output=True).returncode:
        pytest.skip("no small disk can be mounted here")
    picture(400, 400).save("large.png")
    Path("full.py").write_text(textwrap.dedent(ON_A_FULL_DISK))
    commands = [
        ["infer", "large.png", PHRASE, "--out", f"{disk}/results"],
        ["data", "synth", f"{disk}/scenes", "--train", "9", "--val", "0", "--test", "0"],
        ["train", "--data", "data", "--from-scratch", "--out", f"{disk}/run"],
        ["export", str(exported.run), "--out", f"{disk}/bundle"],
    ]
    Path("commands.json").write_text(json.dumps(commands))
    script = f"{mount} && exec '{sys.executable}' full.py \"$(cat commands.json)\""
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ran = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(ran) == len(commands)
    for (code, told), arguments in zip(ran, commands, strict=True):
        assert code == 2, (arguments, told)
        assert told.count("\n") == 1, told
        assert str(disk) in told
        assert "no space left" in told or "MiB free" in told


def test_a_disk_that_is_nearly_full_is_told_before_training(
    data: Path, capsys: Capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(data)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=5 << 20))
    ran = run_here(capsys, "train", "--data", "data", "--from-scratch", "--out", "run")
    assert_refused(ran, "only 5 MiB free", "'run'")


# Data sets


class Bomb:
    """Runs a command when it is unpickled carelessly."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("harm",)


def write_bomb(data: Path) -> None:
    (data / RRSISD / "refs(unc).p").write_bytes(pickle.dumps([Bomb()]))


def resize_masks(data: Path) -> None:
    path = data / RRSISD / "instances.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    for annotation in document["annotations"]:
        annotation["segmentation"] = [encode_mask(np.ones((30, 31), np.bool_))]
    path.write_text(json.dumps(document), encoding="utf-8")


def spoil_pictures(data: Path) -> None:
    for path in (data / IMAGES).iterdir():
        path.write_text("no picture")


def remove_one_picture(data: Path) -> None:
    sorted((data / IMAGES).iterdir())[-1].unlink()


BAD_DATA: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "missing": (lambda data: shutil.rmtree(data), ("the data set 'data' does not exist",)),
    "another folder": (lambda data: (shutil.rmtree(data), data.mkdir()), ("'data' is no data set of a known format",)),
    "code in it": (write_bomb, ("refs(unc).p", "contains code", "mkdir")),
    "no annotations": (lambda data: (data / RRSISD / "instances.json").unlink(), ("instances.json' is missing",)),
    "annotations cut": (lambda data: cut_in_half(data / RRSISD / "instances.json"), ("instances.json", "cut off")),
    "expressions cut": (lambda data: cut_in_half(data / RRSISD / "refs(unc).p"), ("refs(unc).p", "cut off")),
    "no pictures": (lambda data: shutil.rmtree(data / IMAGES), ("image folder", "missing")),
    "a picture missing": (remove_one_picture, ("1 of ", " images of 'data' are missing, the first is '")),
    "other mask sizes": (resize_masks, ("its mask is 30x31", "--resize-masks")),
}


@pytest.mark.parametrize("fault", BAD_DATA)
def test_data_sets_that_would_spoil_training(fault: str, data: Path, capsys: Capsys) -> None:
    spoil, told = BAD_DATA[fault]
    spoil(data)
    train = run_here(capsys, "train", "--data", "data", "--from-scratch", "--out", "run")
    assert_refused(train, *told)
    evaluated = run_here(capsys, "eval", "--data", "data", "--split", "val", "--bundle", "bundle")
    assert_refused(evaluated, *told)
    assert not Path("harm").exists()
    assert not Path("run/last.safetensors").exists()


@pytest.mark.parametrize(
    "fault", [fault for fault in BAD_DATA if fault not in ("a picture missing", "other mask sizes")]
)
def test_data_sets_that_cannot_be_opened(fault: str, data: Path, capsys: Capsys) -> None:
    spoil, told = BAD_DATA[fault]
    spoil(data)
    assert_refused(run_here(capsys, "data", "check", "data"), *told)
    assert_refused(run_here(capsys, "data", "convert", "data", "out.jsonl"), *told)
    assert not Path("out.jsonl").exists()
    assert not Path("harm").exists()


def test_a_picture_that_cannot_be_read_is_named(data: Path, capsys: Capsys) -> None:
    """Never replaced by another, as some tools do."""
    spoil_pictures(data)
    ran = run_here(capsys, "eval", "--data", "data", "--split", "val", "--bundle", "bundle")
    assert_refused(ran, str(IMAGES), "is not an image")


def test_a_split_that_does_not_exist_is_named_with_those_that_do(data: Path, capsys: Capsys) -> None:
    ran = run_here(capsys, "eval", "--data", "data", "--split", "tets", "--bundle", "bundle")
    assert_refused(ran, "'tets'", "'train', 'val'")


def test_scenes_are_not_drawn_over_other_things(place: Path, capsys: Capsys) -> None:
    Path("mine").mkdir()
    Path("mine/thesis.txt").write_text("years of work")
    for extra in ([], ["--overwrite"]):
        ran = run_here(capsys, "data", "synth", "mine", "--train", "1", "--val", "0", "--test", "0", *extra)
        assert_refused(ran, "mine")
    assert Path("mine/thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["data", "synth", "out", "--domain", "C"], "unknown domain 'C': choose one of A, B"),
        (["data", "synth", "out", "--train", "0", "--val", "0", "--test", "0"], "at least one scene"),
        (["train", "--data", "data", "--preset", "huge"], "unknown preset 'huge': choose one of tiny, b, l"),
        (["train", "--data", "data", "--precision", "fp8"], "unknown precision 'fp8'"),
        (["train", "--data", "data", "--text-padding", "none"], "unknown text padding 'none'"),
        (["train", "--data", "data", "--from-scratch", "--learning-rate", "-1"], "learning_rate must be positive"),
        (["train", "--data", "data", "--from-scratch", "--learning-rate", "nan"], "learning_rate must be positive"),
        (["train", "--data", "data", "--from-scratch", "--base", "x"], "--from-scratch and --base contradict"),
        (["train", "--data", "data", "--base", "nowhere.safetensors"], "'nowhere.safetensors' do"),
        (["train", "--data", "data", "--resume"], "no run under 'runs'"),
        (["eval", "--data", "data", "--protocol", "mine"], "unknown protocol 'mine'"),
        (["eval", "--data", "data", "--split", "val", "--run", "nowhere"], "'nowhere' is no run"),
        (["eval", "--data", "data", "--split", "val"], "no run under 'runs'"),
        (["eval", "--data", "data", "--run", "a", "--bundle", "bundle"], "name different models"),
        (["merge", "nowhere"], "'nowhere' is no run"),
        (["merge"], "no run under 'runs'"),
        (["export"], "no run under 'runs'"),
        (["export", "nowhere"], "'nowhere' is no run"),
        (["export", "nowhere", "--out", "data"], "'data' exists and is no bundle"),
        (["parity", "--data", "data", "--split", "val"], "no run under 'runs'"),
        (["bench", "--backends", "torch"], "no run under 'runs'"),
        (["bench", "--backends", " , "], "--backends"),
        (["export", "--random-weights", "huge"], "unknown preset 'huge'"),
        (["train", "--data", "data", "--sam", "nowhere.pth"], "--sam and --siglip go together"),
        (["train", "--data", "data", "--preset", "b", "--sam", "no.pth", "--siglip", "no"], "'no.pth' does not exist"),
        (["convert", "no.pth", "--out", "run", "--preset", "huge"], "unknown preset 'huge'"),
        (["merge", "nowhere", "--half"], "'nowhere' is no run"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_arguments_that_name_nothing(arguments: list[str], told: str, data: Path, capsys: Capsys) -> None:
    assert_refused(run_here(capsys, *arguments), told)


# Checkpoints


def write_torch_bomb(path: Path) -> None:
    import torch

    torch.save({"model": Bomb()}, path)


@pytest.mark.parametrize(
    "write",
    [
        write_torch_bomb,
        lambda path: path.write_bytes(pickle.dumps(Bomb())),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(struct.pack("<Q", 1 << 60) + b"{}"),
    ],
    ids=["torch", "pickle", "empty", "a header of an exabyte"],
)
def test_a_base_that_is_no_safetensors_file_is_refused_unread(
    write: Callable[[Path], Any], data: Path, small_base: Path, capsys: Capsys
) -> None:
    write(Path("base.safetensors"))
    shutil.copy(small_base.with_name("tokenizer.json"), "tokenizer.json")
    ran = run_here(capsys, "train", "--data", "data", "--base", "base.safetensors", "--out", "run")
    assert_refused(ran, "base.safetensors' is no whole safetensors file")
    assert not Path("harm").exists()


def test_a_run_that_is_there_is_not_overwritten(exported: Exported, data: Path, capsys: Capsys) -> None:
    shutil.copytree(exported.run, "runs/001")
    before = {path.name: path.read_bytes() for path in Path("runs/001").iterdir() if path.is_file()}
    ran = run_here(capsys, "train", "--data", "data", "--from-scratch", "--out", "runs/001")
    assert_refused(ran, "'runs/001' already holds a run", "--resume")
    assert {path.name: path.read_bytes() for path in Path("runs/001").iterdir() if path.is_file()} == before


@pytest.mark.parametrize("name", ["best.safetensors", "run.json", "reference_inputs.safetensors", "tokenizer.json"])
def test_a_damaged_run_is_named(name: str, exported: Exported, place: Path, capsys: Capsys) -> None:
    shutil.copytree(exported.run, "runs/001")
    cut_in_half(Path("runs/001") / name)
    assert_refused(run_here(capsys, "merge"), name)


def test_a_bundle_of_another_run_is_no_reference(exported: Exported, data: Path, capsys: Capsys) -> None:
    shutil.copytree(exported.run, "runs/001")
    ran = run_here(capsys, "parity", "--data", "data", "--split", "val")
    assert ran.code == 2
    assert "the bundle 'bundle' was exported from" in ran.err.splitlines()[-1]
    assert Bundle.open("bundle").manifest.preset == "made"
