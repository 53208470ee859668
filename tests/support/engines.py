"""Inputs of engines, their outputs, and differences between engines."""

from pathlib import Path

import numpy as np
import onnx

from rsrefseg.bench.parity.parity import run_parity
from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.engine import Arrays, Engine
from rsrefseg.engines.openvino.engine import OpenVinoEngine
from tests.support.exported import Exported, spoiled_bundle


def exact(bundle: Bundle) -> OpenVinoEngine:
    return OpenVinoEngine(bundle, threads=1, fp32=True)


def random_image(bundle: Bundle, seed: int = 0) -> np.ndarray:
    side = bundle.manifest.geometry.image_size
    return np.random.default_rng(seed).integers(0, 256, (1, 3, side, side), np.uint8)


def asked(engine: Engine, image: np.ndarray, phrases: tuple[str, ...]) -> Arrays:
    """Return the outputs of an engine for an image and phrases."""
    tokens = engine.bundle.tokenizer().encode(phrases)
    encoded = engine.encode_image(image)
    logits = engine.predict(encoded, engine.encode_text(tokens.input_ids, tokens.token_mask))
    return engine.to_host(encoded) | {"mask_logits": logits}


def share_of_max(wanted: Arrays, found: Arrays) -> float:
    """Return the largest error of an array as a fraction of its maximum."""
    return max(float(np.abs(found[name] - wanted[name]).max() / np.abs(wanted[name]).max()) for name in wanted)


def assert_fault_is_found(exported: Exported, folder: Path, stage: Stage, backend: str) -> None:
    """Assert that parity fails only for the stage with a fault in its largest weight."""

    def nudge(values: np.ndarray) -> np.ndarray:
        values[1:] += 0.05 * np.abs(values).max()
        return values

    weights = onnx.load(exported.bundle / f"{stage}.onnx").graph.initializer
    largest = max((weight for weight in weights if len(weight.dims) > 1), key=lambda weight: np.prod(weight.dims))
    report = run_parity(spoiled_bundle(exported.bundle, folder, stage, largest.name, nudge), backend)
    assert {row.stage for row in report.tensors if row.check == "stage" and not row.passed} == {stage}
