"""Makes tiled_scene.png: a mosaic of made scenes that `rsrefseg infer` segments in tiles, with the polygons it writes.

rsrefseg demo && python docs/images/tiled_scene.py demo/scenes bundle docs/images/tiled_scene.png
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

from rsrefseg.data.formats import open_dataset
from rsrefseg.engines.images.images import read_image
from rsrefseg.engines.images.tiles import Tiling
from rsrefseg.engines.infer import infer_image

COLUMNS, ROWS, SHOWN_PX = 4, 3, 800
PHRASE, CATEGORY, COLOUR = "the swimming pool", "swimming pool", (240, 228, 66)


def main(scenes: Path, bundle: Path, picture: Path) -> None:
    """Segment a mosaic of test scenes that show the class in tiles, and draw it."""
    samples = open_dataset(scenes).split("test")
    shown = [sample.image_path for sample in samples if sample.category == CATEGORY and sample.has_target]
    files = [*dict.fromkeys(shown), *dict.fromkeys(sample.image_path for sample in samples)][: COLUMNS * ROWS]
    pixels = [read_image(file) for file in dict.fromkeys(files)]
    rows = [np.concatenate(pixels[start : start + COLUMNS], axis=1) for start in range(0, len(pixels), COLUMNS)]
    image = np.concatenate(rows)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "scene.tif"
        profile = {"crs": "EPSG:32633", "transform": from_origin(500_000, 4_100_000, 0.5, 0.5), "photometric": "RGB"}
        height, width = image.shape[:2]
        with rasterio.open(path, "w", "GTiff", width, height, 3, dtype="uint8", **profile) as scene:
            scene.write(np.moveaxis(image, 2, 0))
        report = infer_image(str(path), [PHRASE], bundle, "onnxruntime", Path(folder) / "results", min_area="20m2")
        features = json.loads(report.files[1].read_text())["features"]
        tile_px, overlap_px = report.provenance.tile_px or width, report.provenance.overlap_px or 0
    scale = SHOWN_PX / width
    drawn = Image.fromarray(image).resize((SHOWN_PX, round(height * scale)), Image.Resampling.LANCZOS)
    draw = ImageDraw.Draw(drawn, "RGBA")
    tiling, to_pixels = Tiling(height, width, tile_px, overlap_px), ~profile["transform"]
    for (top, bottom), (left, right) in tiling.windows():
        draw.rectangle([place * scale for place in (left, top, right - 1, bottom - 1)], outline=(255, 255, 255, 60))
    for feature in features:
        shape = transform_geom("EPSG:4326", profile["crs"], feature["geometry"])
        rings = [[tuple(part * scale for part in to_pixels @ point) for point in ring] for ring in shape["coordinates"]]
        draw.polygon(rings[0], fill=(*COLOUR, 50))
        for ring in rings:
            draw.line(ring, fill=(*COLOUR, 255), width=2)
    drawn.quantize(64).save(picture, optimize=True)
    print(f"{width} x {height} px, {len(list(tiling.windows()))} tiles, {len(features)} polygons")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
