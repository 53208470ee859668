"""Opens runs, model files, the shipped base and bundles as predictors for ``rsrefseg eval``."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from rsrefseg.engines.backends import Backend
from rsrefseg.engines.system.files import sha256_file

if TYPE_CHECKING:
    from rsrefseg.evaluation.predictions import Predict


class Predictor(NamedTuple):
    """A model that predicts masks.

    Attributes:
        predict: function that predicts masks for the phrases of an image.
        name: description of the model.
        runtime: ``torch`` or the name of a backend.
        model_sha256: digest of the file with the weights: merged or, for a run without a merge, trained weights. For a
            bundle, digest of the merged model it was exported from; None for random weights.
        bundle_sha256: digest of the bundle's manifest, which lists the digests of all its files; None without a bundle.
        notes: notes on the bundle, one line each.
    """

    predict: "Predict"
    name: str
    runtime: str
    model_sha256: str | None
    bundle_sha256: str | None = None
    notes: tuple[str, ...] = ()


@contextlib.contextmanager
def open_predictor(
    run: Path | None, base: bool, bundle: Path | None, backend: str | None, absent_below: float = 0.0
) -> Iterator[Predictor]:
    """Open a model for the duration of the ``with`` block.

    Args:
        run: run folder, or file of a merged model with ``tokenizer.json`` in its folder; default is the latest run.
        base: use the shipped base instead.
        bundle: use this bundle instead; if only ``backend`` is given, the default bundle.
        backend: runtime for the bundle; ``auto`` if only ``bundle`` is given.
        absent_below: see ``MaskRule``.

    Raises:
        BadInputError: the run or model file does not exist, is unfinished or is damaged.
        MissingPartError: the backend cannot run here, or the package has no shipped base.
        BundleError: the bundle is incomplete or damaged.
    """
    if bundle is not None or backend is not None:
        from rsrefseg.engines.segmenter import Segmenter

        with Segmenter.open(bundle, backend or Backend.AUTO, absent_below=absent_below) as segmenter:
            opened = segmenter.bundle
            yield Predictor(
                segmenter.segment,
                name=f"bundle {opened.root}",
                runtime=segmenter.engine.name,
                model_sha256=opened.manifest.provenance.checkpoint_sha256,
                bundle_sha256=opened.digest or None,
                notes=opened.manifest.notes,
            )
        return
    from rsrefseg.engines.segmentation import MaskRule
    from rsrefseg.evaluation.evaluate import predict_with
    from rsrefseg.evaluation.models import base_model, run_model
    from rsrefseg.evaluation.presence import presence_of
    from rsrefseg.runs.run import Run

    found = base_model() if base else run_model(run)
    weights_sha256 = sha256_file(found.weights)
    rule = MaskRule(absent_below=absent_below, presence=presence_of(Run(found.weights.parent), weights_sha256))
    yield Predictor(predict_with(found.model, found.tokenizer, rule), found.source, "torch", weights_sha256)
