"""Masks and regions of a raster lie where the raster lies, and say what they were made from."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.features import rasterize
from rasterio.transform import from_origin
from rasterio.warp import transform_geom

from rsrefseg.engines.errors import BadInputError, RSRefSegError
from rsrefseg.engines.images.images import read_scene
from rsrefseg.engines.images.scene import Scene
from rsrefseg.engines.infer import InferReport, infer_image
from rsrefseg.engines.results.provenance import source_name
from rsrefseg.engines.results.results import write_results
from rsrefseg.engines.segmentation import Segmentation
from tests.engines.test_results import ODD_PHRASES
from tests.support.commands import assert_refused, run_here
from tests.support.rasters import write_raster

PLACES: dict[str, dict[str, Any]] = {
    "rotated": {"transform": rasterio.Affine(0.4, 0.3, 500_000, 0.3, -0.4, 4_100_000)},
    "degrees": {"crs": "EPSG:4326", "transform": from_origin(15, 37, 1e-5, 1e-5)},
    "UTM, south": {"crs": "EPSG:32733"},
    "no CRS": {"crs": None, "transform": None},
    "upside down": {"transform": rasterio.Affine(0.5, 0, 500_000, 0, 0.5, 4_100_000)},
    "local CRS": {"crs": 'LOCAL_CS["site",UNIT["metre",1]]'},
}
PHRASES = ("the red square", "a blue square")
Infer = Callable[..., InferReport]


def quarters(side: int = 96, full: int = 255) -> np.ndarray:
    """Red above left and blue below right, with no data in 8 columns of both."""
    bands = np.full((3, side, side), 1, np.uint16)
    bands[0, : side // 2, : side // 2] = full
    bands[2, side // 2 :, side // 2 :] = full
    bands[:, :, :8] = bands[:, :, -8:] = 0
    return bands if full > 255 else bands.astype(np.uint8)


@pytest.fixture
def infer(folder: Path, tmp_path: Path) -> Infer:
    return lambda path, phrases=PHRASES, **options: infer_image(
        str(path), phrases, folder, "onnxruntime", tmp_path / "out", **options
    )


def stored(report: InferReport) -> tuple[Path, list[dict[str, Any]], dict[str, Any]]:
    """Paths of the masks, the features, and the JSON file."""
    masks, vectors, _, document = report.files
    collection = json.loads(vectors.read_text(encoding="utf-8"))
    assert collection["type"] == "FeatureCollection"
    return masks, collection["features"], json.loads(document.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", PLACES)
def test_masks_and_polygons_lie_where_the_raster_lies(tmp_path: Path, infer: Infer, name: str) -> None:
    source = write_raster(tmp_path / "a.tif", quarters(), nodata=0, photometric="RGB", **PLACES[name])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        masks, features, document = stored(infer(source.path))
    with rasterio.open(source.path) as image, rasterio.open(masks) as made:
        assert (made.crs, made.transform, made.shape) == (image.crs, image.transform, image.shape)
        assert (made.dtypes, made.nodata, made.descriptions) == (("uint8", "uint8"), 255, PHRASES)
        assert made.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert made.compression is not None
        bands, crs, transform = made.read(), image.crs, image.transform
    assert np.array_equal(bands == 255, np.broadcast_to(~source.valid, bands.shape))
    assert [bool((band == 1).any()) for band in bands] == [True, True]
    on_earth = crs is not None and crs.is_projected | crs.is_geographic
    for band, phrase, result in zip(bands, PHRASES, document["results"], strict=True):
        ours = [feature for feature in features if feature["properties"]["phrase"] == phrase]
        shapes = [feature["geometry"] for feature in ours]
        if on_earth:
            shapes = [transform_geom("EPSG:4326", crs, shape) for shape in shapes]
        drawn = rasterize(shapes, band.shape, transform=transform if on_earth else rasterio.Affine.identity())
        assert np.array_equal(drawn, band == 1)
        assert sum(feature["properties"]["area_px"] for feature in ours) == result["area_px"] == (band == 1).sum()
        pixel_m2 = abs(transform.determinant) * (111_195.0**2 * np.cos(np.radians(37)) if name == "degrees" else 1)
        for feature in ours:
            properties = feature["properties"]
            assert properties["source"] == str(source.path)
            assert properties["bundle_sha256"] == document["provenance"]["bundle_sha256"]
            assert 0.5 < properties["score"] <= 1
            if on_earth:  # UTM is off by 0.2%, a sphere by 0.5%
                assert properties["area_m2"] == pytest.approx(properties["area_px"] * pixel_m2, rel=0.01)
            else:
                assert properties["area_m2"] is None
            for number, ring in enumerate(feature["geometry"]["coordinates"]):
                assert ring[0] == ring[-1]
                x, y = np.array(ring).T - np.array(ring[0])[:, None]
                assert (np.dot(x[:-1], y[1:]) > np.dot(x[1:], y[:-1])) == (number == 0), "the right-hand rule"


def test_holes_and_regions_that_touch_at_a_corner_are_kept_apart(tmp_path: Path) -> None:
    logits = np.full((40, 50), -3, np.float32)
    logits[5:20, 5:20] = 4
    logits[9:12, 9:12] = -3  # a hole
    logits[20:30, 20:30] = 2  # touches at a corner
    scene = read_scene(write_raster(tmp_path / "a.tif", np.ones((3, 40, 50), np.uint8)).path)
    masks, vectors, *_ = write_results(tmp_path, "a", scene, [_Fixed("the field", logits, (40, 50), 50)])
    features = json.loads(vectors.read_text())["features"]
    with rasterio.open(masks) as made:
        assert np.array_equal(made.read(1) == 1, logits > 0)
    by_size = sorted(features, key=lambda feature: feature["properties"]["area_px"])
    assert [len(feature["geometry"]["coordinates"]) for feature in by_size] == [1, 2]
    assert [feature["properties"]["area_px"] for feature in by_size] == [100, 216]
    assert by_size[0]["properties"]["score"] == pytest.approx(1 / (1 + np.exp(-2)), abs=1e-4)
    assert by_size[1]["properties"]["area_m2"] == pytest.approx(216 / 4, rel=0.003)


def test_a_region_beyond_the_projection_has_no_area_but_keeps_its_mask(tmp_path: Path) -> None:
    """The antipode of a world map's centre has no place in an equal-area plane."""
    world = {"crs": "EPSG:4326", "transform": from_origin(-180, 90, 7.2, 4.5)}
    logits = np.full((40, 50), -3, np.float32)
    logits[20:24, :4] = logits[10:14, 20:24] = 3
    scene = read_scene(write_raster(tmp_path / "a.tif", np.ones((3, 40, 50), np.uint8), **world).path)
    masks, vectors, *_ = write_results(tmp_path, "a", scene, [_Fixed("the island", logits, (40, 50), 50)])
    with rasterio.open(masks) as made:
        assert np.array_equal(made.read(1) == 1, logits > 0)
    lost, placed = sorted(
        json.loads(vectors.read_text())["features"], key=lambda one: one["properties"]["area_m2"] or 0
    )
    assert (lost["properties"]["area_m2"], lost["properties"]["area_px"]) == (None, 16)
    assert placed["properties"]["area_m2"] > 0


class _Fixed(Segmentation):
    """A segmentation whose logits have the image's size already."""

    def full_size_logits(self) -> np.ndarray:
        return self.mask_logits.copy()


def test_nothing_found_is_an_empty_layer(tmp_path: Path) -> None:
    scene = read_scene(write_raster(tmp_path / "a.tif", quarters()).path)
    nothing = [_Fixed(phrase, np.full((96, 96), -1, np.float32), (96, 96), 96) for phrase in PHRASES]
    masks, vectors, *_ = write_results(tmp_path / "out", "a", scene, nothing)
    assert json.loads(vectors.read_text()) == {"type": "FeatureCollection", "features": []}
    with rasterio.open(masks) as made:
        assert not made.read().any()


def test_masks_never_hold_pixels_without_data(infer: Infer, tmp_path: Path) -> None:
    bands = np.zeros((4, 96, 96), np.uint8)
    bands[0], bands[3, :, :48] = 255, 255
    path = write_raster(tmp_path / "a.tif", bands, photometric="RGB", alpha="YES").path
    (result,) = infer(path, PHRASES[:1]).results
    assert result["area_px"] > 0
    assert result["box"][2] <= 48
    scene = Scene(np.zeros((4, 4, 3), np.uint8), np.eye(4, dtype=np.bool_))
    found = Segmentation("a", np.full((4, 4), 5, np.float32), (4, 4), 4, valid=scene.valid)
    assert np.array_equal(found.mask, scene.valid)
    assert found.probability[0, 1] < 1e-6


def test_the_provenance_names_input_bundle_bands_and_stretch(infer: Infer, tmp_path: Path) -> None:
    source = write_raster(tmp_path / "a.tif", quarters(full=4000), ("B02", "B03", "B04"))
    report = infer(source.path, bands="B04,B03,B02", stretch="0,4000")
    _, _, document = stored(report)
    assert document["provenance"] == report.provenance.to_dict()
    assert report.to_dict()["provenance"]["raster"]["bands"] == [3, 2, 1]
    raster = report.provenance.raster
    assert raster is not None
    assert (raster.stretch, raster.limits) == ("0,4000", ((0, 4000),) * 3)
    assert raster.descriptions == ("B04", "B03", "B02")
    assert {"rsrefseg", "numpy", "rasterio", "onnxruntime"} <= report.provenance.versions.keys()
    assert len(report.provenance.source_sha256 or "") == 64
    assert (report.provenance.backend, report.provenance.source) == ("onnxruntime", str(source.path))
    swapped = infer(source.path)
    assert swapped.provenance.raster is not None
    assert swapped.notes == swapped.provenance.raster.notes


def test_a_raster_by_another_name_has_results_and_no_digest(infer: Infer, tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", quarters()).path
    report = infer(f"GTIFF_DIR:1:{path}")
    assert report.provenance.source_sha256 is None
    assert all(file.is_file() for file in report.files)


def test_secrets_of_a_url_are_not_written() -> None:
    assert source_name("https://me:secret@host/a.tif?sig=secret") == "https://host/a.tif"
    assert source_name("/vsicurl/https://host/a.tif?sig=secret") == "/vsicurl/https://host/a.tif"
    assert source_name("s3://bucket/a b.tif") == "s3://bucket/a b.tif"


def test_a_tile_beyond_the_pixel_limit_is_refused(infer: Infer, tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", quarters()).path
    with pytest.raises(BadInputError, match="--tile"):
        infer(path, tile="50", max_pixels=2_499)
    assert infer(path, tile="50", max_pixels=2_500).provenance.tile_px == 50


def test_a_raster_without_valid_pixels_is_refused(infer: Infer, tmp_path: Path) -> None:
    with pytest.raises(RSRefSegError, match="no valid pixel"):
        infer(write_raster(tmp_path / "a.tif", quarters() * 0, nodata=0).path)
    assert not (tmp_path / "out").exists()


def test_a_killed_or_failed_write_leaves_no_map(tmp_path: Path) -> None:
    scene = read_scene(write_raster(tmp_path / "a.tif", quarters()).path)

    class Failing(_Fixed):
        def full_size_logits(self) -> np.ndarray:
            raise RSRefSegError("stopped")

    with pytest.raises(RSRefSegError, match="stopped"):
        write_results(tmp_path / "out", "a", scene, [Failing("a", np.zeros((1, 1), np.float32), (96, 96), 96)])
    assert list((tmp_path / "out").iterdir()) == []


def test_bands_and_stretch_of_the_command(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_raster(tmp_path / "a.tif", quarters(full=4000))
    asked = ("infer", "a.tif", PHRASES[0], "--bundle", folder)
    ran = run_here(capsys, *asked, "--bands", "3,2,1", "--stretch", "0,4000", "--json")
    assert ran.code == 0, ran.err
    assert ran.result["provenance"]["raster"]["bands"] == [3, 2, 1]
    assert "note: bands 1, 2, 3" in run_here(capsys, *asked).out
    assert_refused(run_here(capsys, *asked, "--bands", "7"), "'7'")
    assert_refused(run_here(capsys, *asked, "--stretch", "much"), "'much'")


def test_odd_phrases_describe_their_bands(tmp_path: Path) -> None:
    scene = read_scene(write_raster(tmp_path / "a.tif", quarters()).path)
    found = [_Fixed(phrase, np.full((96, 96), 2, np.float32), (96, 96), 96) for phrase in ODD_PHRASES]
    masks, vectors, *_ = write_results(tmp_path / "out", "a", scene, found)
    phrases = [feature["properties"]["phrase"] for feature in json.loads(vectors.read_bytes())["features"]]
    assert phrases == ODD_PHRASES
    with rasterio.open(masks) as made:
        assert (made.count, made.descriptions[0]) == (len(ODD_PHRASES), ODD_PHRASES[0])
        assert all(made.descriptions)
