"""Photos become uint8 RGB or are refused; stretching and upsampling are those of the model."""

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from PIL import Image

from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.images.images import read_image, stretch, upsample_logits
from tests.support.damage import read_mutations, refused

RNG = np.random.default_rng(7)
IMAGE = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
IMAGE[0, 0] = 255
GREY = np.repeat(IMAGE[..., :1], 3, axis=2)
OPAQUE = np.full((5, 7), 255, np.uint8)
HIDDEN = OPAQUE.copy()  # row 1 is transparent
HIDDEN[1] = 0
BLACK_ROW = IMAGE * (HIDDEN[..., None] // 255)

Write = Callable[[Path], object]


def pillow(image: Image.Image | np.ndarray, **options: Any) -> Write:
    made = image if isinstance(image, Image.Image) else Image.fromarray(image)
    return lambda path: made.save(path, **options)


def converted(mode: str) -> tuple[str, Write, np.ndarray]:
    image = Image.fromarray(IMAGE[..., 0] if mode == "LA" else IMAGE).convert(mode)
    return f"{mode}.{'tif' if mode == 'CMYK' else 'png'}", pillow(image), np.asarray(image.convert("RGB"))


PALETTE = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
PALETTE.putpalette([255, 255, 255, 10, 20, 30])
FRAMES = [Image.new("RGB", (4, 3), colour) for colour in ("red", "lime")]
# File name, writer, and the pixels that are read from it.
KINDS: list[tuple[str, Write, Any]] = [
    *((f"a.{suffix}", pillow(IMAGE), IMAGE) for suffix in ("png", "tif", "bmp", "ppm", "jp2")),
    ("a.webp", pillow(IMAGE, lossless=True), IMAGE),
    ("a PNG.jpg", pillow(IMAGE, format="PNG"), IMAGE),
    *map(converted, ("1", "L", "P", "LA", "RGBA", "CMYK", "RGB")),
    ("transparent.png", pillow(np.dstack([IMAGE, HIDDEN])), BLACK_ROW),
    ("palette.png", pillow(PALETTE, transparency=0), [[[0, 0, 0], [10, 20, 30]]]),
    ("grey.png", pillow(np.array([[200, 90]], np.uint8), transparency=200), [[[0, 0, 0], [90, 90, 90]]]),
    ("pixel.png", pillow(Image.new("RGB", (1, 1), (1, 2, 3))), [[[1, 2, 3]]]),
    ("frames.tif", pillow(FRAMES[0], save_all=True, append_images=FRAMES[1:]), np.array(FRAMES[0])),
]  # fmt: skip


@pytest.mark.parametrize(("name", "write", "expected"), KINDS, ids=[name for name, *_ in KINDS])
def test_files_of_every_usual_kind_are_read(tmp_path: Path, name: str, write: Write, expected: Any) -> None:
    write(tmp_path / name)
    read = read_image(str(tmp_path / name))
    assert (read.dtype, read.flags.c_contiguous, read.flags.writeable) == (np.uint8, True, True)
    assert np.array_equal(read, expected)


def test_half_transparency_and_lossy_cmyk_are_read(tmp_path: Path) -> None:
    half = np.full((5, 7), 51, np.uint8)
    pillow(np.dstack([IMAGE, half]))(tmp_path / "half.png")
    assert np.abs(read_image(tmp_path / "half.png") - IMAGE / 5).max() <= 1
    plain = np.full((16, 16, 3), (200, 60, 20), np.uint8)
    pillow(Image.fromarray(plain).convert("CMYK"), quality=95)(tmp_path / "a.jpg")
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - plain).max() <= 6


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientation_is_honoured(tmp_path: Path, name: str, turn: int) -> None:
    corners, path = np.zeros((32, 48, 3), np.uint8), tmp_path / name
    corners[:16, :24], corners[:16, 24:], corners[16:, :24] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(corners).save(path, exif=exif)
    turned = {
        1: corners, 2: corners[:, ::-1], 3: corners[::-1, ::-1], 4: corners[::-1], 5: corners.transpose(1, 0, 2),
        6: np.rot90(corners, -1), 7: corners[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(corners),
    }[turn]  # fmt: skip
    read = read_image(path)
    assert read.shape == turned.shape
    assert np.abs(read.astype(int) - turned).mean() < 12  # lossy formats smear the edges


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"
REFUSED: list[tuple[str, Write, str]] = [
    ("page.eps", lambda path: path.write_bytes(EPS), "is not an image"),
    ("page.svg", lambda path: path.write_text("<svg width='9' height='9'/>"), "is not an image"),
    ("a\0b.png", lambda _: None, "cannot read the image"),
    ("x" * 300 + ".png", lambda _: None, "cannot read the image"),
]


@pytest.mark.parametrize(("name", "write", "fact"), REFUSED, ids=[ascii(name)[:20] for name, *_ in REFUSED])
def test_other_files_are_refused_in_one_line(tmp_path: Path, name: str, write: Write, fact: str) -> None:
    write(tmp_path / name)
    refused(tmp_path / name, fact)


NOISE = RNG.integers(0, 256, (120, 160, 3), dtype=np.uint8)
FORMATS = {f"a.{suffix}": pillow(NOISE) for suffix in ("png", "jpg", "webp", "bmp", "gif")}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.filterwarnings("ignore::UserWarning", "error::ResourceWarning")
def test_damaged_files_are_refused_in_one_line(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    path, random = tmp_path / name, np.random.default_rng(3)
    FORMATS[name](path)
    assert read_image(path).shape == NOISE.shape
    whole = path.read_bytes()
    for share in (0.002, 0.05, 0.5, 0.97):
        path.write_bytes(whole[: max(9, int(len(whole) * share))])
        refused(path, "cut short")
    assert capfd.readouterr().err == ""
    read_mutations(path, whole, random, count=30, reach=300)


def test_an_image_beyond_the_limit_is_refused(tmp_path: Path) -> None:
    for name in ("a.png", "a.tif"):
        pillow(np.zeros((20, 30), np.uint8))(tmp_path / name)
        refused(tmp_path / name, "30 x 20 = 600 pixels", max_pixels=599)
        assert read_image(tmp_path / name, max_pixels=600).shape == (20, 30, 3)
        refused(tmp_path / name, "at least 1", max_pixels=0)


def test_pillows_own_limit_is_neither_used_nor_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for name in ("a.png", "a.gif", "a.tif"):
        Image.fromarray(IMAGE).save(tmp_path / name)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert read_image(tmp_path / name).shape == (5, 7, 3)
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(read_image, [tmp_path / name] * 8))
    assert Image.MAX_IMAGE_PIXELS == 10


def test_stretch_is_opencvs_bilinear_channel_first() -> None:
    stretched = stretch(NOISE, 64)
    assert (stretched.shape, stretched.dtype, stretched.flags.c_contiguous) == ((3, 64, 64), np.uint8, True)
    expected = cv2.resize(NOISE, (64, 64), interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(stretched, expected.transpose(2, 0, 1))
    assert np.array_equal(stretch(expected, 64), stretched)
    for shape in ((1, 1, 3), (1, 40_000, 3), (70_000, 2, 3)):
        assert (stretch(np.full(shape, 9, np.uint8), 32) == 9).all()
    for wrong in (IMAGE[..., 0], np.dstack([IMAGE, IMAGE[..., 0]]), IMAGE / 255, IMAGE[:0]):
        with pytest.raises(BadInputError, match="uint8 RGB"):
            stretch(wrong, 8)


@pytest.mark.parametrize("original", [(800, 800), (1, 1), (337, 911), (100, 31), (1024, 1024), (1500, 1999), (7, 1300)])
@pytest.mark.parametrize(("grid", "size"), [(256, 1024), (64, 256)])
def test_upsampling_equals_torch(grid: int, size: int, original: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    logits = RNG.normal(scale=8, size=(grid, grid)).astype(np.float32)
    ours = upsample_logits(logits, size, original)
    theirs = torch.from_numpy(logits)[None, None]
    for shape in ((size, size), original):
        theirs = torch.nn.functional.interpolate(theirs, shape, mode="bilinear", align_corners=False)
    assert (ours.dtype, ours.shape) == (np.float32, original)
    # Outputs under about 64 px take another path in torch, with weights rounded otherwise: 1e-5 of the range there.
    scale = 1 if min(original) > 64 else np.abs(logits).max()
    assert np.abs(ours - theirs[0, 0].numpy()).max() <= 1e-5 * scale
