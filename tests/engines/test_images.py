"""Any usual picture file becomes uint8 RGB, or one clear line; stretching and upsampling are those of the model."""

import contextlib
import struct
import threading
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.images.images import DEFAULT_MAX_PIXELS, read_image, stretch, upsample_logits

RNG = np.random.default_rng(7)
PICTURE = RNG.integers(0, 256, (5, 7, 3), dtype=np.uint8)
PICTURE[0, 0] = 255
GREY = PICTURE[..., 0]


def as_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=2)


def over_black(colours: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    return np.floor(colours * (alpha[..., None] / 255) + 0.5)


def write_tiff(
    path: Path,
    bands: np.ndarray,
    *,
    photometric: int = 2,
    extra: tuple[int, ...] | None = None,
    turn: int = 1,
    big: bool = False,
) -> Path:
    """An uncompressed TIFF of any number type and number of bands, as GDAL writes them and few image libraries do."""
    bands = bands if bands.ndim == 3 else bands[..., None]
    height, width, count = bands.shape
    kind = {"u": 1, "i": 2, "f": 3}[bands.dtype.kind]
    tags: dict[int, tuple[str, list[int]]] = {
        256: ("I", [width]), 257: ("I", [height]), 258: ("H", [8 * bands.dtype.itemsize] * count), 259: ("H", [1]),
        262: ("H", [photometric if count > 2 else 1]), 273: ("I", [0]), 274: ("H", [turn]), 277: ("H", [count]),
        278: ("I", [height]), 279: ("I", [bands.nbytes]), 339: ("H", [kind] * count),
    }  # fmt: skip
    if extra is not None:
        tags[338] = ("H", list(extra))
    head, entry, inline = (16, 20, 8) if big else (8, 12, 4)
    beyond = head + (8 if big else 2) + entry * len(tags) + (8 if big else 4)
    long = sum(
        len(values) * struct.calcsize(code)
        for code, values in tags.values()
        if len(values) * struct.calcsize(code) > inline
    )
    tags[273] = ("I", [beyond + long])
    rows, blob = b"", b""
    for tag in sorted(tags):
        code, values = tags[tag]
        data = struct.pack(f"<{len(values)}{code}", *values)
        if len(data) > inline:
            blob += data
            data = struct.pack("<Q" if big else "<I", beyond + len(blob) - len(data))
        rows += struct.pack("<HHQ" if big else "<HHI", tag, {"H": 3, "I": 4}[code], len(values)) + data.ljust(
            inline, b"\0"
        )
    start = b"II" + (struct.pack("<HHHQ", 43, 8, 0, 16) if big else struct.pack("<HI", 42, 8))
    count_and_rows = struct.pack("<Q" if big else "<H", len(tags)) + rows + (b"\0" * (8 if big else 4))
    path.write_bytes(start + count_and_rows + blob + np.ascontiguousarray(bands).tobytes())
    return path


@pytest.mark.parametrize("name", ["a.png", "a.tif", "a.bmp", "a.ppm", "a.webp", "a.jp2"])
def test_lossless_formats_come_back_as_they_are(tmp_path: Path, name: str) -> None:
    Image.fromarray(PICTURE).save(tmp_path / name, **({"lossless": True} if name == "a.webp" else {}))
    read = read_image(tmp_path / name)
    assert (read.dtype, read.flags.c_contiguous, read.flags.writeable) == (np.uint8, True, True)
    assert np.array_equal(read, PICTURE)


def test_a_name_without_or_with_another_suffix_is_read_by_content(tmp_path: Path) -> None:
    Image.fromarray(PICTURE).save(tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "scene.jpg")
    assert np.array_equal(read_image(str(tmp_path / "scene.jpg")), PICTURE)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "RGB"])
def test_every_usual_colour_mode_works(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(GREY if mode == "LA" else PICTURE).convert(mode)
    path = tmp_path / ("a.tif" if mode == "CMYK" else "a.png")
    image.save(path)
    assert np.array_equal(read_image(path), np.asarray(image.convert("RGB")))


def test_cmyk_jpeg_keeps_its_colours(tmp_path: Path) -> None:
    plain = np.full((16, 16, 3), (200, 60, 20), np.uint8)
    Image.fromarray(plain).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - plain).max() <= 6


def test_transparent_pixels_are_black_whatever_colour_hides_below(tmp_path: Path) -> None:
    alpha = np.full((5, 7), 255, np.uint8)
    alpha[1], alpha[2] = 0, 51
    Image.fromarray(np.dstack([PICTURE, alpha])).save(tmp_path / "a.png")
    read = read_image(tmp_path / "a.png")
    assert not read[1].any()
    assert np.array_equal(read[0], PICTURE[0])
    assert np.abs(read - over_black(PICTURE, alpha)).max() <= 1


def test_palette_and_grey_transparency_are_honoured(tmp_path: Path) -> None:
    palette = Image.new("P", (2, 1))
    palette.putpalette([255, 255, 255, 10, 20, 30])
    palette.putdata([0, 1])
    palette.save(tmp_path / "p.png", transparency=0)
    assert read_image(tmp_path / "p.png").tolist() == [[[0, 0, 0], [10, 20, 30]]]
    grey = Image.fromarray(np.array([[200, 90]], np.uint8))
    grey.save(tmp_path / "g.png", transparency=200)
    assert read_image(tmp_path / "g.png").tolist() == [[[0, 0, 0], [90, 90, 90]]]


@pytest.mark.parametrize("suffix", ["png", "tif", "jpg", "webp"])
@pytest.mark.parametrize("turn", range(1, 9))
def test_exif_orientation_is_honoured(tmp_path: Path, suffix: str, turn: int) -> None:
    corners = np.zeros((32, 48, 3), np.uint8)
    corners[:16, :24], corners[:16, 24:], corners[16:, :24] = (250, 0, 0), (0, 250, 0), (0, 0, 250)
    image = Image.fromarray(corners)
    exif = image.getexif()
    exif[0x0112] = turn
    image.save(tmp_path / f"a.{suffix}", exif=exif)
    turned = {
        1: corners, 2: corners[:, ::-1], 3: corners[::-1, ::-1], 4: corners[::-1], 5: corners.transpose(1, 0, 2),
        6: np.rot90(corners, -1), 7: corners[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(corners),
    }[turn]  # fmt: skip
    read = read_image(tmp_path / f"a.{suffix}")
    assert read.shape == turned.shape
    assert np.abs(read.astype(int) - turned).mean() < 12  # lossy formats smear the edges


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("dtype", ["u2", "f4"])
def test_orientation_of_deep_tiffs_is_honoured_too(tmp_path: Path, turn: int, dtype: str) -> None:
    plain = read_image(write_tiff(tmp_path / "plain.tif", PICTURE, turn=turn))
    deep = read_image(write_tiff(tmp_path / "deep.tif", PICTURE.astype(dtype), turn=turn))
    assert plain.shape[:2] == ((5, 7) if turn < 5 else (7, 5))
    assert np.array_equal(deep, plain)


@pytest.mark.parametrize("turn", range(1, 9))
def test_orientation_of_deep_pngs_is_honoured_too(tmp_path: Path, turn: int) -> None:
    cv2.imwrite(str(tmp_path / "deep.png"), PICTURE[..., ::-1].astype(np.uint16) * 257)
    data = (tmp_path / "deep.png").read_bytes()
    exif = b"II*\0\x08\0\0\0\x01\0" + struct.pack("<HHIHH", 0x0112, 3, 1, turn, 0) + b"\0\0\0\0"
    (tmp_path / "deep.png").write_bytes(data[:33] + png_chunk(b"eXIf", exif) + data[33:])
    image = Image.fromarray(PICTURE)
    image.getexif()[0x0112] = turn
    image.save(tmp_path / "plain.png", exif=image.getexif())
    assert np.array_equal(read_image(tmp_path / "deep.png"), read_image(tmp_path / "plain.png"))


@pytest.mark.parametrize("bits", [8, 10, 11, 12, 14, 16])
@pytest.mark.parametrize("name", ["grey.png", "grey.tif", "rgb.png", "rgb.tif", "rgba.png"])
def test_16_bit_pictures_are_scaled_from_their_real_depth(tmp_path: Path, name: str, bits: int) -> None:
    deep = np.round(PICTURE / 255 * (2**bits - 1)).astype(np.uint16)
    deep = deep[..., 0] if "grey" in name else deep
    want = as_rgb(GREY) if "grey" in name else PICTURE
    if "rgba" in name:
        deep = np.dstack([deep, np.full((5, 7), 65535, np.uint16)])
    cv2.imwrite(str(tmp_path / name), deep if deep.ndim == 2 else deep[..., [2, 1, 0, 3][: deep.shape[2]]])
    assert np.array_equal(read_image(tmp_path / name), want)


def test_16_bit_transparency_is_black(tmp_path: Path) -> None:
    deep = np.dstack([PICTURE.astype(np.uint16) * 257, np.full((5, 7), 65535, np.uint16)])
    deep[2, :, 3] = 0
    cv2.imwrite(str(tmp_path / "a.png"), deep[..., [2, 1, 0, 3]])
    read = read_image(tmp_path / "a.png")
    assert not read[2].any()
    assert np.array_equal(read[3], PICTURE[3])


@pytest.mark.parametrize("dtype", ["u2", "i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("count", [1, 3, 4])
@pytest.mark.parametrize("photometric", [1, 2])
@pytest.mark.parametrize("big", [False, True])
def test_geotiff_kinds_are_read(tmp_path: Path, dtype: str, count: int, photometric: int, big: bool) -> None:
    bands = np.dstack([PICTURE, 255 - GREY]).astype(dtype)[..., :count]
    extra = (0,) * (count - (3 if photometric == 2 else 1)) or None
    path = write_tiff(tmp_path / "a.tif", bands, photometric=photometric, extra=extra, big=big)
    assert np.array_equal(read_image(path), PICTURE if count > 1 else as_rgb(GREY))


@pytest.mark.parametrize(("extra", "opaque"), [((2,), False), ((1,), True), ((0,), True)])
@pytest.mark.parametrize("dtype", ["u2", "f4"])
def test_the_fourth_tiff_band_counts_only_as_the_file_says(
    tmp_path: Path, dtype: str, extra: tuple[int], opaque: bool
) -> None:
    bands = np.dstack([PICTURE, np.full((5, 7), 255)]).astype(dtype)
    bands[1, :, 3] = 0
    read = read_image(write_tiff(tmp_path / "a.tif", bands, extra=extra))
    assert np.array_equal(read[0], PICTURE[0])
    assert read[1].any() == opaque


def test_floats_within_0_and_1_are_shares(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", (PICTURE / 255).astype(np.float32))
    assert np.array_equal(read_image(path), PICTURE)


def test_negative_values_are_black(tmp_path: Path) -> None:
    values = np.array([[-9999.0, 1023.0, 511.5]], np.float32)
    assert read_image(write_tiff(tmp_path / "a.tif", values))[..., 0].tolist() == [[0, 255, 128]]


def test_one_pixel_is_a_picture(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").tolist() == [[[1, 2, 3]]]


def test_of_several_frames_the_first_is_read(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 3), colour) for colour in ("red", "lime")]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    assert (read_image(tmp_path / "a.tif") == (255, 0, 0)).all()


def test_an_empty_stream_and_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty.png").touch()
    (tmp_path / "notes.png").write_text("not an image\n" * 10)
    (tmp_path / "page.eps").write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    (tmp_path / "page.svg").write_text("<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>")
    told = {
        "missing.png": "no image at '", "": "is a folder, not an image", "empty.png": "is empty (0 bytes)",
        "notes.png": "is not an image that can be read", "page.eps": "is not an image that can be read",
        "page.svg": "is not an image that can be read", "a\0b.png": "cannot read the image",
        "notes.png/inside.png": "cannot read the image", "x" * 300 + ".png": "cannot read the image",
    }  # fmt: skip
    for name, message in told.items():
        refused(tmp_path / name, message)


def refused(path: Path, message: str, **options: int) -> str:
    with pytest.raises(BadInputError) as refusal:
        read_image(path, **options)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_an_image_that_may_not_be_read_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    refused(tmp_path / "a.png", "Permission denied")


@pytest.mark.parametrize(
    "name", ["a.png", "a.jpg", "a.tif", "a.webp", "a.bmp", "a.gif", "a.jp2", "deep.png", "deep.tif", "float.tif"]
)
@pytest.mark.parametrize("share", [0.002, 0.05, 0.5, 0.97])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_picture_cut_short_is_refused(tmp_path: Path, name: str, share: float) -> None:
    picture = RNG.integers(0, 256, (120, 160, 3), dtype=np.uint8)
    if name == "float.tif":
        write_tiff(tmp_path / name, picture.astype(np.float32))
    elif name.startswith("deep"):
        cv2.imwrite(str(tmp_path / name), picture.astype(np.uint16) * 200)
    else:
        Image.fromarray(picture).save(tmp_path / name)
    assert read_image(tmp_path / name).shape == (120, 160, 3)
    data = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(data[: max(9, int(len(data) * share))])
    assert "cut short" in refused(tmp_path / name, "corrupt")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "plain.tif", "deep.tif", "a.bmp"])
def test_changed_bytes_never_end_in_anything_but_a_picture_or_one_line(tmp_path: Path, name: str) -> None:
    if name == "deep.tif":
        write_tiff(tmp_path / name, PICTURE.astype(np.uint16) * 200)
    elif name == "plain.tif":
        write_tiff(tmp_path / name, PICTURE)
    else:
        Image.fromarray(PICTURE).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    random = np.random.default_rng(3)
    for _ in range(60):
        data = bytearray(whole)
        for position in random.integers(0, min(len(data), 300), 4):
            data[position] = random.integers(0, 256)
        (tmp_path / name).write_bytes(data)
        with contextlib.suppress(BadInputError):
            read = read_image(tmp_path / name, max_pixels=1_000_000)
            assert (read.dtype, read.ndim, read.shape[2]) == (np.uint8, 3, 3)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path: Path, value: float) -> None:
    values = PICTURE.astype(np.float32)
    values[2, 3, 1] = value
    refused(write_tiff(tmp_path / "a.tif", values), "not finite")
    refused(write_tiff(tmp_path / "b.tif", values[..., 1]), "not finite")


def test_values_beyond_16_bits_are_refused(tmp_path: Path) -> None:
    refused(write_tiff(tmp_path / "a.tif", PICTURE.astype(np.int32) * 1000), "up to 255000, beyond 16 bits")


@pytest.mark.parametrize("count", [5, 8, 13])
def test_more_than_four_bands_are_refused_with_the_way_out(tmp_path: Path, count: int) -> None:
    for dtype in ("u1", "u2", "f4"):
        path = write_tiff(tmp_path / "a.tif", np.zeros((3, 4, count), dtype), photometric=1, extra=(0,) * (count - 1))
        refused(path, f"has {count} bands: pick three")


def test_two_deep_bands_and_grey_marked_8_bit_bands_are_refused(tmp_path: Path) -> None:
    refused(write_tiff(tmp_path / "a.tif", np.zeros((3, 4, 2), np.uint16), extra=(0,)), "has 2 bands")
    refused(write_tiff(tmp_path / "b.tif", PICTURE, photometric=1, extra=(0, 0)), "PHOTOMETRIC=RGB")


def png_chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def png_header(path: Path, width: int, height: int) -> Path:
    """A PNG that claims a size and holds next to nothing: only its header may be looked at."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + png_chunk(b"IHDR", header)
        + png_chunk(b"IDAT", zlib.compress(b""))
        + png_chunk(b"IEND", b"")
    )
    return path


def test_a_picture_beyond_the_limit_is_refused_by_its_header(tmp_path: Path) -> None:
    line = refused(png_header(tmp_path / "a.png", 40_000, 30_000), "40000 x 30000 = 1,200,000,000 pixels")
    assert "--max-pixels" in line
    assert f"{DEFAULT_MAX_PIXELS:,}" in line
    deep = write_tiff(tmp_path / "a.tif", np.zeros((20, 30), np.uint16))
    refused(deep, "30 x 20 = 600 pixels", max_pixels=599)
    assert read_image(deep, max_pixels=600).shape == (20, 30, 3)
    refused(deep, "at least 1", max_pixels=0)


def test_pillows_own_limit_is_neither_used_nor_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    for name in ("a.png", "a.gif", "a.tif"):
        Image.fromarray(PICTURE).save(tmp_path / name)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert read_image(tmp_path / name).shape == (5, 7, 3)
            threads = [threading.Thread(target=read_image, args=(tmp_path / name,)) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
    assert Image.MAX_IMAGE_PIXELS == 10


def test_a_broken_picture_leaves_no_open_file_and_no_line_of_opencv(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    half = write_tiff(tmp_path / "a.tif", PICTURE.astype(np.float32))
    half.write_bytes(half.read_bytes()[:-50])
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        refused(half, "cut short")
    assert capfd.readouterr().err == ""


def test_stretch_is_opencvs_bilinear_channel_first() -> None:
    picture = RNG.integers(0, 256, (50, 80, 3), dtype=np.uint8)
    stretched = stretch(picture, 64)
    assert (stretched.shape, stretched.dtype, stretched.flags.c_contiguous) == ((3, 64, 64), np.uint8, True)
    want = cv2.resize(picture, (64, 64), interpolation=cv2.INTER_LINEAR)
    assert np.array_equal(stretched, want.transpose(2, 0, 1))
    assert np.array_equal(stretch(want, 64), stretched)


@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 40_000, 3), (70_000, 2, 3)])
def test_stretch_takes_any_shape(shape: tuple[int, int, int]) -> None:
    assert (stretch(np.full(shape, 9, np.uint8), 32) == 9).all()


@pytest.mark.parametrize(
    "wrong",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)],
)
def test_stretch_refuses_what_is_no_picture(wrong: np.ndarray) -> None:
    with pytest.raises(BadInputError, match="must be \\(height, width, 3\\) uint8 RGB"):
        stretch(wrong, 8)


@pytest.mark.parametrize("original", [(800, 800), (1, 1), (337, 911), (100, 31), (1024, 1024), (1500, 1999), (7, 1300)])
@pytest.mark.parametrize(("grid", "size"), [(256, 1024), (64, 256)])
def test_upsampling_equals_torch(grid: int, size: int, original: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    logits = RNG.normal(scale=8, size=(grid, grid)).astype(np.float32)
    ours = upsample_logits(logits, size, original)
    square = torch.nn.functional.interpolate(
        torch.from_numpy(logits)[None, None], (size, size), mode="bilinear", align_corners=False
    )
    theirs = torch.nn.functional.interpolate(square, original, mode="bilinear", align_corners=False)[0, 0].numpy()
    assert (ours.dtype, ours.shape) == (np.float32, original)
    # Outputs under about 64 px take another path in torch, with weights rounded otherwise: 1e-5 of the range there.
    scale = 1 if min(original) > 64 else np.abs(logits).max()
    assert np.abs(ours - theirs).max() <= 1e-5 * scale
