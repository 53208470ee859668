"""Makes tiled_scene.png: a large made scene that `rsrefseg infer` segments in tiles, with the polygons it writes.

rsrefseg export --base && rsrefseg data synth scenes --train 0 --val 0 --test 20 --seed 0
python docs/images/tiled_scene.py scenes bundle docs/images/tiled_scene.png
"""

import json
import sys
import tempfile
from pathlib import Path

import numpy as np
import rasterio
from PIL import Image, ImageDraw
from rasterio.transform import from_origin
from rasterio.warp import transform_geom

from rsrefseg.engines.images.tiles import Tiling
from rsrefseg.engines.infer import infer_image

COLUMNS, ROWS, SHOWN_PX = 5, 4, 800
PHRASES = {"the airplane": (240, 228, 66), "the storage tank": (86, 180, 233), "the tennis court": (230, 159, 0)}


def main(scenes: Path, bundle: Path, picture: Path) -> None:
    """Segment a mosaic of scenes in tiles and draw it."""
    files = sorted((scenes / "images/rrsisd/JPEGImages").iterdir())[: COLUMNS * ROWS]
    pixels = [np.asarray(Image.open(file).convert("RGB")) for file in files]
    rows = [np.concatenate(pixels[start : start + COLUMNS], axis=1) for start in range(0, len(pixels), COLUMNS)]
    image = np.concatenate(rows)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scene.tif"
        profile = {"crs": "EPSG:32633", "transform": from_origin(500_000, 4_100_000, 0.5, 0.5), "photometric": "RGB"}
        height, width = image.shape[:2]
        with rasterio.open(path, "w", "GTiff", width, height, 3, dtype="uint8", **profile) as scene:
            scene.write(np.moveaxis(image, 2, 0))
        report = infer_image(str(path), list(PHRASES), bundle, "onnxruntime", Path(folder) / "results")
        features = json.loads(report.files[1].read_text())["features"]
        tile_px, overlap_px = report.provenance.tile_px or width, report.provenance.overlap_px or 0
    scale = SHOWN_PX / width
    shown = Image.fromarray(image).resize((SHOWN_PX, round(height * scale)), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(shown, "RGBA")
    tiling, to_pixels = Tiling(height, width, tile_px, overlap_px), ~profile["transform"]
    for (top, bottom), (left, right) in tiling.windows():
        draw.rectangle([place * scale for place in (left, top, right - 1, bottom - 1)], outline=(255, 255, 255, 40))
    for feature in features:
        colour = PHRASES[feature["properties"]["phrase"]]
        shape = transform_geom("EPSG:4326", profile["crs"], feature["geometry"])
        outer, *holes = [
            [tuple(part * scale for part in to_pixels @ point) for point in ring] for ring in shape["coordinates"]
        ]
        draw.polygon(outer, fill=(*colour, 60))
        for ring in (outer, *holes):
            draw.line(ring, fill=(*colour, 255), width=2)
    shown.quantize(96).save(picture, optimize=True)
    counts = [sum(one["properties"]["phrase"] == phrase for one in features) for phrase in PHRASES]
    found = dict(zip(PHRASES, counts, strict=True))
    print(f"{width} x {height} px, {len(list(tiling.windows()))} tiles, polygons: {found}")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
