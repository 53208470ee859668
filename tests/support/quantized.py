"""Quantised bundles of the small run."""

from pathlib import Path

from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.export.quantization.judge import choose_samples
from rsrefseg.export.quantization.quantize import quantize_bundle
from rsrefseg.export.quantization.settings import QuantizationSettings
from tests.support.exported import Exported

DYNAMIC = QuantizationSettings()


def quantized(source: Bundle, folder: Path, settings: QuantizationSettings = DYNAMIC) -> Bundle:
    """Quantise a bundle into a new folder, as ``export`` does."""
    folder.mkdir()
    samples = None if settings.data is None else choose_samples(settings)
    manifest = quantize_bundle(source, folder, settings, samples, lambda line: None)
    Bundle.write_manifest(folder, manifest)
    return Bundle.open(folder)


def static(exported: Exported, **others: object) -> QuantizationSettings:
    """Return settings with calibrated scales; ``others`` are further fields."""
    given: dict[str, object] = {"static": True, "data": exported.data, "split": "train"}
    return QuantizationSettings(**(given | others))  # type: ignore[arg-type]
