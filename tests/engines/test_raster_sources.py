"""Rasters are read from every place that GDAL knows; broken and unsuitable ones are refused in one line."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio.shutil
from rasterio.io import MemoryFile

from rsrefseg.engines.images.images import read_image
from tests.support.damage import read_mutations, refused
from tests.support.rasters import colour_bands, write_kind, write_raster

RGB = colour_bands()


def test_vrt_subdatasets_and_archives_are_read(tmp_path: Path) -> None:
    stored = write_raster(tmp_path / "a.tif", RGB)
    (tmp_path / "a.vrt").write_text(
        f'<VRTDataset rasterXSize="160" rasterYSize="160"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f"<SourceFilename>{stored.path}</SourceFilename><SourceBand>2</SourceBand></SimpleSource></VRTRasterBand>"
        f"</VRTDataset>"
    )
    assert np.array_equal(read_image(tmp_path / "a.vrt")[..., 0], RGB[1])
    archive = shutil.make_archive(str(tmp_path / "all"), "zip", tmp_path, "a.tif")
    assert np.array_equal(read_image(f"/vsizip/{archive}/a.tif"), np.moveaxis(RGB, 0, 2))
    rasterio.shutil.copy(stored.path, tmp_path / "a.nc", driver="netCDF")
    refused(tmp_path / "a.nc", "holds 3 rasters")
    assert np.array_equal(read_image(f"NETCDF:{tmp_path / 'a.nc'}:Band2")[..., 0], RGB[1])


SERVER = """
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

data = Path(sys.argv[1]).read_bytes()


class Ranges(BaseHTTPRequestHandler):
    def do_GET(self):
        asked, first, last = self.headers.get("Range"), 0, len(data) - 1
        if asked:
            start, _, end = asked.removeprefix("bytes=").partition("-")
            first, last = int(start), min(int(end or last), last)
        found = self.path == "/bucket/a.tif"
        self.send_response(404 if not found else 206 if asked else 200)
        self.send_header("Content-Length", str(last + 1 - first if found else 0))
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        if found and self.command == "GET":
            self.wfile.write(data[first : last + 1])

    do_HEAD = do_GET
    log_message = lambda *_: None


server = ThreadingHTTPServer(("127.0.0.1", 0), Ranges)
print(server.server_port, flush=True)
server.serve_forever()
"""


def test_rasters_on_servers_and_in_object_stores_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = write_raster(tmp_path / "a.tif", RGB)
    # In a process of its own, because rasterio holds the interpreter's lock while it opens a file.
    with subprocess.Popen([sys.executable, "-c", SERVER, stored.path], stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        place = f"127.0.0.1:{server.stdout.readline().strip()}"
        for name, value in {
            "AWS_S3_ENDPOINT": place, "AWS_HTTPS": "NO", "AWS_VIRTUAL_HOSTING": "FALSE", "AWS_NO_SIGN_REQUEST": "YES",
            "CPL_GS_ENDPOINT": f"http://{place}/", "GS_NO_SIGN_REQUEST": "YES", "no_proxy": "127.0.0.1",
        }.items():  # fmt: skip
            monkeypatch.setenv(name, value)
        try:
            for name in (f"http://{place}/bucket/a.tif", "s3://bucket/a.tif", "gs://bucket/a.tif"):
                assert np.array_equal(read_image(name), np.moveaxis(RGB, 0, 2)), name
            refused(f"http://{place}/nothing.tif", "nothing.tif")
            refused("s3://bucket/nothing.tif", "s3://bucket/nothing.tif")
        finally:
            server.kill()


def test_rasters_by_other_names_are_read_or_refused(tmp_path: Path) -> None:
    stored = write_raster(tmp_path / "a.tif", RGB)
    with MemoryFile(stored.path.read_bytes(), ext="tif") as memory:
        assert np.array_equal(read_image(memory.name), np.moveaxis(RGB, 0, 2))
    refused("https://127.0.0.1:9/scene.tif", "https://127.0.0.1:9/scene.tif")
    refused("/vsimem/nothing.tif", "/vsimem/nothing.tif")


def test_other_rasters_are_refused_in_one_line(tmp_path: Path) -> None:
    complex_ = write_raster(tmp_path / "complex.tif", RGB[:1].astype(np.complex64))
    refused(complex_.path, "complex values")
    (tmp_path / "text.tif").write_text("not a raster\n" * 9)
    refused(tmp_path / "text.tif", "is not an image")
    refused(write_raster(tmp_path / "large.tif", RGB).path, "160 x 160 = 25,600 pixels", max_pixels=25_599)


DAMAGED = (
    "planar uint16, LZW", "planar float32, tiled", "planar uint16, grey", "COG, WebP", "uint16, ZSTD", "JPEG 2000",
    "PNG, uint16", "JPEG in YCbCr", "NaN", "Sentinel-2",
)  # fmt: skip


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_rasters_are_refused_in_one_line(tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]) -> None:
    path, random = tmp_path / "a.tif", np.random.default_rng(3)
    write_kind(name, path)
    whole = path.read_bytes()
    for share in (0.002, 0.05, 0.5, 0.9):
        path.write_bytes(whole[: max(9, int(len(whole) * share))])
        refused(path, str(path))
    read_mutations(path, whole, random, count=40, reach=400)
    assert capfd.readouterr().err == ""
