"""Rasters are read with GDAL's pixels; bands, stretch and valid pixels are those that were declared."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio.shutil
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rasterio.rpc import RPC

from rsrefseg.engines.images import rasters
from rsrefseg.engines.images.images import read_image, read_scene
from rsrefseg.engines.images.scene import Scene
from rsrefseg.engines.results.regions import Placement
from tests.support.damage import refused
from tests.support.rasters import KINDS, S2_NAMES, Stored, colour_bands, write_kind, write_raster

RGB = colour_bands()
DEEP = RGB.astype(np.uint16) * 12
REPEATED = np.repeat(np.arange(1, 5, dtype=np.uint16)[:, None, None] * 100, 20, axis=1).repeat(20, axis=2)


def shown(stored: Stored, bands: tuple[int, ...] = (1, 2, 3)) -> np.ndarray:
    """The pixels expected by default: 8 bits as they are, others from the 2nd to the 98th percentile of a band."""
    planes = []
    for band in bands:
        values, valid = stored.bands[band - 1].astype(np.float64), stored.valid
        if stored.bands.dtype != np.uint8:
            low, high = np.percentile(values[valid], (2, 98))
            values = np.rint(np.clip((values - low) / (high - low), 0, 1) * 255)
        planes.append(np.where(valid, values, 0))
    return np.stack(planes * (4 - len(planes) if len(planes) == 1 else 1), axis=2)[..., :3]


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_read_as_gdal_reads_it(tmp_path: Path, name: str) -> None:
    stored = write_kind(name, tmp_path / "a.tif")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        scene = read_scene(stored.path)
    bands = (4, 3, 2) if name == "Sentinel-2" else (1,) if len(stored.bands) == 1 else (1, 2, 3)
    assert scene.raster is not None
    assert scene.raster.bands == bands
    assert scene.image.dtype == np.uint8
    assert np.array_equal(scene.valid if scene.valid is not None else np.ones_like(stored.valid), stored.valid)
    # One unit where a value lies between two levels.
    assert np.abs(scene.image - shown(stored, bands)).max() <= (stored.bands.dtype != np.uint8)
    assert read_image(stored.path).tobytes() == scene.image.tobytes()


def test_a_valid_pixel_keeps_a_band_that_equals_nodata(tmp_path: Path) -> None:
    bands = RGB.copy()
    bands[:, 0, 0], bands[:, 0, 1] = (255, 200, 100), 255
    scene = read_scene(write_raster(tmp_path / "a.tif", bands, nodata=255).path, stretch="none")
    assert scene.image[0, 0].tolist() == [255, 200, 100]
    assert scene.image[0, 1].tolist() == [0, 0, 0]
    assert scene.valid is not None
    assert scene.valid[0, :2].tolist() == [True, False]


def test_a_wholly_transparent_raster_has_no_valid_pixel(tmp_path: Path) -> None:
    bands = np.concatenate([RGB, np.zeros_like(RGB[:1])])
    scene = read_scene(write_raster(tmp_path / "a.tif", bands, photometric="RGB", alpha="yes").path)
    assert scene.valid is not None
    assert not scene.valid.any()


def test_an_empty_entry_names_no_band(tmp_path: Path) -> None:
    refused(write_raster(tmp_path / "a.tif", RGB).path, "has no band ''", bands="3,,1")


def test_threads_read_the_same_pixels(tmp_path: Path) -> None:
    stored = write_kind("planar uint16, LZW", tmp_path / "a.tif")
    with ThreadPoolExecutor(8) as pool:
        assert len({read.tobytes() for read in pool.map(read_image, [stored.path] * 16)}) == 1


def test_a_raster_keeps_its_place(tmp_path: Path) -> None:
    info = read_scene(write_kind("rotated", tmp_path / "a.tif").path).raster
    assert info is not None
    assert info.crs is not None
    assert rasterio.CRS.from_wkt(info.crs) == rasterio.CRS.from_epsg(32633)
    assert info.transform == (0.4, 0.3, 500_000, 0.3, -0.4, 4_100_000)
    plain = read_scene(write_kind("no CRS", tmp_path / "b.tif").path).raster
    assert plain is not None
    assert (plain.crs, plain.transform) == (None, (1, 0, 0, 0, 1, 0))


def names_of(scene: Scene) -> tuple[int, ...]:
    assert scene.raster is not None
    return scene.raster.bands


BAND_CASES: list[tuple[int, tuple[str, ...], tuple[str, ...], str | None, tuple[int, ...]]] = [
    (4, (), ("blue", "green", "red", "undefined"), None, (3, 2, 1)),
    (4, ("Blue", "Green", "Red", "NIR"), ("red", "green", "blue", "undefined"), None, (3, 2, 1)),
    (4, ("B02", "B03", "B04", "B08"), (), None, (3, 2, 1)),
    (4, ("SR_B1", "SR_B2", "SR_B3", "SR_B7"), (), None, (3, 2, 1)),
    (4, (), (), None, (1, 2, 3)),
    (4, (), (), "4,3,2", (4, 3, 2)),
    (4, ("B02", "B03", "B04", "B08"), (), "B08, b04,B03", (4, 3, 2)),
    (4, (), ("blue", "green", "red", "alpha"), "red,green,blue", (3, 2, 1)),
    (4, (), (), "2", (2,)),
    (2, (), (), None, (1,)),
]


@pytest.mark.parametrize("case", range(len(BAND_CASES)))
def test_bands_are_chosen_by_description_colour_or_number(tmp_path: Path, case: int) -> None:
    count, descriptions, colours, asked, expected = BAND_CASES[case]
    stored = write_raster(tmp_path / "a.tif", REPEATED[:count], descriptions, photometric="MINISBLACK")
    with rasterio.open(stored.path, "r+") as raster:
        if colours:
            raster.colorinterp = [ColorInterp[colour] for colour in colours]
    scene = read_scene(stored.path, bands=asked, stretch="0,500")
    assert names_of(scene) == expected
    levels = [round(band * 100 / 500 * 255) for band in expected]
    assert (scene.image == (levels * 3 if len(levels) == 1 else levels)).all()
    assert scene.raster is not None
    assert asked is not None or scene.raster.notes


@pytest.mark.parametrize("asked", ["5,1,1", "0,1,2", "1,2", "1,2,3,4", "B99,B03,B02", "", "-1", "²"])
def test_bands_that_are_not_there_are_refused(tmp_path: Path, asked: str) -> None:
    refused(write_raster(tmp_path / "a.tif", REPEATED, S2_NAMES[:4]).path, "band", bands=asked)


def test_stretches(tmp_path: Path) -> None:
    stored = write_raster(tmp_path / "a.tif", DEEP)
    values = np.moveaxis(DEEP, 0, 2).astype(np.float64)
    mean, deviation = values.mean((0, 1)), values.std((0, 1))
    ranges = {
        "0,3000": (0, 3000),
        "none": (0, 255),
        "sigma:2": (mean - 2 * deviation, mean + 2 * deviation),
        "auto": np.percentile(values, (2, 98), axis=(0, 1)),
    }
    for stretch, (low, high) in ranges.items():
        scene = read_scene(stored.path, stretch=stretch)
        expected = np.rint(np.clip((values - low) / (high - low), 0, 1) * 255)
        assert np.abs(scene.image - expected).max() <= 1, stretch
        assert scene.raster is not None
        limits = np.broadcast_to(np.array([low, high]).T, (3, 2))
        assert np.allclose(scene.raster.limits, limits), stretch
    eight = read_scene(write_raster(tmp_path / "b.tif", RGB).path, stretch="50,60").image
    assert set(np.unique(eight)) >= {0, 255}
    for wrong in ("", "linear", "5", "3,1", "1,nan", "sigma:0", "sigma:x", "sigma:-1", "1,2,3"):
        refused(stored.path, "is not a stretch", stretch=wrong)


def test_decibels_make_linear_backscatter_like_backscatter_in_db(tmp_path: Path) -> None:
    linear = np.random.default_rng(0).gamma(2, 0.05, (1, 50, 60)).astype(np.float32)
    linear[0, :5] = 0  # no data of SAR products
    scene = read_scene(write_raster(tmp_path / "a.tif", linear).path, stretch="db")
    assert scene.valid is not None
    assert np.array_equal(scene.valid, linear[0] > 0)
    other = read_scene(write_raster(tmp_path / "b.tif", 10 * np.log10(linear), nodata=-np.inf).path)
    assert np.abs(scene.image.astype(int) - other.image).max() <= 1


def test_statistics_are_those_of_the_whole_raster_in_every_window(tmp_path: Path) -> None:
    ramp = np.tile(np.arange(6000, dtype=np.uint16), (3, 40, 1))
    path = write_raster(tmp_path / "a.tif", ramp, **{"tiled": True, "blockxsize": 256, "blockysize": 256}).path
    whole = read_scene(path)
    assert whole.raster is not None
    assert np.allclose(whole.raster.limits, (0.02 * 6000, 0.98 * 6000), atol=12)  # a decimated read of 2048 columns
    with rasters.open_raster(str(path), 10**6) as raster:
        part, _ = raster.read(((8, 30), (1000, 3000)))
    assert np.array_equal(part, whole.image[8:30, 1000:3000])


def test_strips_and_one_read_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("planar float32, tiled", "NaN", "RGB and near infrared"):
        stored = write_kind(name, tmp_path / "a.tif")
        whole = read_scene(stored.path)
        monkeypatch.setattr(rasters, "_STRIP_PIXELS", 1)
        assert np.array_equal(read_scene(stored.path).image, whole.image)


def test_a_fourth_band_is_opacity_only_if_it_holds_nothing_else(tmp_path: Path) -> None:
    rgba = {"photometric": "RGB", "alpha": "YES"}
    for bands, full in ((RGB, 255), (DEEP, 65535)):
        mask = np.full((1, *RGB.shape[1:]), full, bands.dtype)
        mask[:, :40] = 0
        scene = read_scene(write_raster(tmp_path / "a.tif", np.concatenate([bands, mask]), **rgba).path)
        assert scene.valid is not None
        assert np.array_equal(scene.valid, mask[0] > 0)
        assert not scene.image[:40].any()
        mask[:, 40:80] = full // 2
        path = write_raster(tmp_path / "b.tif", np.concatenate([bands, mask]), **rgba).path
        scene = read_scene(path)
        assert scene.valid is None
        assert scene.image[:40].any()
        plain = read_scene(write_raster(tmp_path / "c.tif", bands).path)
        assert np.array_equal(scene.image, plain.image)
        assert read_scene(path, bands="4").image.any()


def test_mask_bands_and_values_that_are_not_finite_are_invalid(tmp_path: Path) -> None:
    inside = np.ones(RGB.shape[1:], np.bool_)
    inside[:, 100:] = False
    for name, environment in (("a.tif", {"GDAL_TIFF_INTERNAL_MASK": "YES"}), ("b.tif", {})):
        with rasterio.Env(**environment):
            write_raster(tmp_path / name, DEEP)
            with rasterio.open(tmp_path / name, "r+") as raster:
                raster.write_mask(inside)
        scene = read_scene(tmp_path / name)
        assert scene.valid is not None
        assert np.array_equal(scene.valid, inside)
        assert not scene.image[~inside].any()
    broken = RGB.astype(np.float32)
    broken[:, 3, 4], broken[0, 5, 6] = np.inf, np.nan
    scene = read_scene(write_raster(tmp_path / "c.tif", broken).path)
    assert scene.valid is not None
    assert np.argwhere(~scene.valid).tolist() == [[3, 4]]
    assert scene.image[5, 6, 0] == 0
    assert scene.image[5, 6, 1:].all()


def test_a_raster_without_valid_pixels_is_black(tmp_path: Path) -> None:
    scene = read_scene(write_raster(tmp_path / "a.tif", DEEP * 0, nodata=0).path)
    assert scene.valid is not None
    assert not scene.valid.any()
    assert not scene.image.any()


def test_palettes_are_expanded(tmp_path: Path) -> None:
    index = (RGB[:1] > 100).astype(np.uint8)
    with rasterio.open(
        tmp_path / "a.tif", "w", driver="GTiff", height=160, width=160, count=1, dtype=np.uint8, photometric="palette"
    ) as raster:
        raster.write(index)
        raster.write_colormap(1, {0: (250, 10, 20), 1: (1, 2, 3)})
    scene = read_scene(tmp_path / "a.tif")
    assert np.array_equal(scene.image, np.array([[250, 10, 20], [1, 2, 3]])[index[0]])
    assert set(np.unique(read_scene(tmp_path / "a.tif", bands="1").image)) == {0, 1}


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_values_of_fewer_than_8_bits_use_the_whole_range(tmp_path: Path, bits: int) -> None:
    values = RGB[:1] >> (8 - bits)
    scene = read_scene(write_raster(tmp_path / "a.tif", values, NBITS=bits).path)
    assert np.array_equal(scene.image[..., 0], np.rint(values[0] * (255 / (2**bits - 1))))


def test_a_raster_placed_by_control_points_says_so(tmp_path: Path) -> None:
    corners = [GroundControlPoint(row, column, 15 + column, 37 - row) for row in (0, 160) for column in (0, 160)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = write_raster(tmp_path / "a.tif", RGB, crs=None, transform=None).path
    with rasterio.open(path, "r+") as raster:
        raster.gcps = (corners, rasterio.CRS.from_epsg(4326))
    info = read_scene(path).raster
    assert info is not None
    assert info.crs is None
    assert any("ground control points" in note for note in info.notes)


@pytest.mark.parametrize(
    ("profile", "reason"),
    [({"crs": "EPSG:32633", "transform": None}, "no transform"), ({"crs": None, "transform": None}, "RPCs")],
)
def test_a_raster_without_a_transform_has_no_place_and_says_so(
    tmp_path: Path, profile: dict[str, Any], reason: str
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = write_raster(tmp_path / "a.tif", RGB, **profile).path
    if reason == "RPCs":
        polynomial = [0.0, *[0.1] * 19]
        with rasterio.open(path, "r+") as raster:
            raster.rpcs = RPC(
                height_off=0, height_scale=1, lat_off=50, lat_scale=1, line_den_coeff=[1.0, *[0.0] * 19],
                line_num_coeff=polynomial, line_off=80, line_scale=80, long_off=15, long_scale=1,
                samp_den_coeff=[1.0, *[0.0] * 19], samp_num_coeff=polynomial, samp_off=80, samp_scale=80,
            )  # fmt: skip
    info = read_scene(path).raster
    assert info is not None
    assert not Placement.of(info, (160, 160)).on_earth
    assert any(reason in note for note in info.notes)
