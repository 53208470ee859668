"""What OpenVINO's tests ask of an engine, and how far an answer is from another."""

from pathlib import Path

import numpy as np
import onnx

from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.engine import Arrays, Engine
from rsrefseg.engines.openvino.engine import OpenVinoEngine
from tests.support.exported import Exported, spoiled_bundle


def exact(bundle: Bundle) -> OpenVinoEngine:
    return OpenVinoEngine(bundle, threads=1, fp32=True)


def picture(bundle: Bundle, seed: int = 0) -> np.ndarray:
    side = bundle.manifest.geometry.image_size
    return np.random.default_rng(seed).integers(0, 256, (1, 3, side, side), np.uint8)


def asked(engine: Engine, image: np.ndarray, phrases: tuple[str, ...]) -> Arrays:
    """What an engine makes of a picture and phrases."""
    tokens = engine.bundle.tokenizer().encode(phrases)
    encoded = engine.encode_image(image)
    logits = engine.answer(encoded, engine.encode_text(tokens.input_ids, tokens.token_mask))
    return engine.to_host(encoded) | {"mask_logits": logits}


def share_of_max(wanted: Arrays, found: Arrays) -> float:
    """The largest error of an array, as a share of its largest value."""
    return max(float(np.abs(found[name] - wanted[name]).max() / np.abs(wanted[name]).max()) for name in wanted)


def nudged_bundle(exported: Exported, folder: Path, stage: Stage) -> Path:
    """A copy of the bundle with a fault in a stage's largest weight."""

    def nudge(values: np.ndarray) -> np.ndarray:
        values[1:] += 0.05 * np.abs(values).max()
        return values

    weights = onnx.load(exported.bundle / f"{stage}.onnx").graph.initializer
    largest = max((weight for weight in weights if len(weight.dims) > 1), key=lambda weight: np.prod(weight.dims))
    return spoiled_bundle(exported.bundle, folder / "bundle", stage, largest.name, nudge)
