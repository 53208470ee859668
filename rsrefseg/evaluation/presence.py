"""``rsrefseg calibrate``: fits presence scores on a validation split."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.presence import Presence, strength
from rsrefseg.engines.records import Record
from rsrefseg.engines.system.files import atomic_write_json
from rsrefseg.engines.system.progress import ProgressLine

from ..checkpoints.model_file import digest
from ..data.formats import open_dataset
from ..data.masks import empty_rle
from ..data.samples import Sample, group_by_image
from ..data.verify import verify_samples
from ..runs.merge import current_merge, merge
from ..runs.run import Run, latest_run
from .evaluate import predict_with
from .models import run_model
from .predictions import predict_samples

# A lower area under the curve means that the scores hardly tell present from absent.
_USEFUL_AUC = 0.8
_ITERATIONS = 50
# Towards a scale of zero, so that a fit on strengths that separate perfectly stays finite.
_RIDGE = 1e-3


class CalibrationReport(Record, frozen=True):
    """The report of ``rsrefseg calibrate``.

    Attributes:
        run: folder of the run.
        split: the split, with its data set.
        presence: the calibration.
        file: path of its record, which ``export`` reads.
        mean_with_target, mean_without_target: mean presence score of phrases with and without a target.
    """

    run: str
    split: str
    presence: Presence
    file: Path
    mean_with_target: float
    mean_without_target: float

    def render(self) -> str:
        """Return the report as lines of text."""
        found = self.presence
        lines = [
            f"{self.split}: {found.with_target} phrases with a target, {found.without_target} without",
            f"mean presence score: {self.mean_with_target:.2f} with a target, {self.mean_without_target:.2f} without",
            f"area under the ROC curve: {found.auc:.4f}",
            f"written to {self.file}: export the run again",
        ]
        if found.auc < _USEFUL_AUC:
            lines.append("note: the scores hardly tell present from absent: train with phrases that have no target")
        return "\n".join(lines)


def calibrate(path: Path | None, data: Path, split: str = "val", images: Path | None = None) -> CalibrationReport:
    """Fit the presence scores of a run on a split and write them beside the run's model, which is merged if need be.

    Phrases without a target are those that the data set marks; if there are none, each image is also asked for phrases
    of other images whose class it has no annotation of.

    Args:
        path: folder of the run; the latest by default.
        data: data set.
        split: its split.
        images: image folder, if it is not the one of the format.

    Raises:
        BadInputError: the run, data set or split cannot be used, or the split has no phrases of one kind.
    """
    run = Run(path) if path is not None else latest_run()
    dataset = open_dataset(data, images)
    (samples,) = verify_samples(dataset, [split], resize_masks=True)
    asked = with_absent(samples)
    _refuse_one_kind(np.array([sample.has_target for sample in asked]))
    if current_merge(run) is None:
        merge(run)
    found = run_model(run.path)
    predict, keep_aspect = predict_with(found.model, found.tokenizer), found.model.config.preprocessing.keep_aspect
    with ProgressLine("calibrating") as progress:
        predictions = predict_samples(predict, asked, resize_masks=True, progress=progress.update)
        pairs = [(strength(one.mask_logits, one.mask.shape, keep_aspect), bool(one.truth.any())) for one in predictions]
    strengths, present = np.array([value for value, _ in pairs]), np.array([there for _, there in pairs])
    presence = fit(strengths, present, digest(run.merged_path))
    scores = 1 / (1 + np.exp(-(presence.scale * strengths + presence.bias)))
    atomic_write_json(run.presence_path, presence.to_dict())
    return CalibrationReport(
        run=str(run.path),
        split=f"{data}, split {split}",
        presence=presence,
        file=run.presence_path,
        mean_with_target=float(scores[present].mean()),
        mean_without_target=float(scores[~present].mean()),
    )


def with_absent(samples: Sequence[Sample]) -> tuple[Sample, ...]:
    """Return samples with and without a target.

    If all have one, each image gets as many phrases of other images, of classes that it has no annotation of.
    """
    if not all(sample.has_target for sample in samples):
        return tuple(samples)
    asked, rng = list(samples), np.random.default_rng(0)
    for group in group_by_image(samples):
        there = {sample.category for sample in group}
        others = [sample for sample in samples if sample.category not in there]
        chosen = rng.permutation(len(others))[: len(group)]
        empty = empty_rle(*group[0].mask_size)
        asked += [
            replace(
                group[0],
                phrase=others[index].phrase,
                category=others[index].category,
                mask_source=empty,
                has_target=False,
            )
            for index in chosen
        ]
    return tuple(asked)


def fit(strengths: npt.NDArray[np.float64], present: npt.NDArray[np.bool_], checkpoint_sha256: str) -> Presence:
    """Fit the logistic regression of ``present`` (N,) bool on ``strengths`` (N,), both kinds with equal weight.

    Raises:
        BadInputError: there are no phrases of one kind.
    """
    _refuse_one_kind(present)
    centre, spread = strengths.mean(), strengths.std() or 1.0
    inputs = np.stack([(strengths - centre) / spread, np.ones_like(strengths)], axis=1)
    weights = np.where(present, 0.5 / present.sum(), 0.5 / (~present).sum())
    found = np.zeros(2)
    for _ in range(_ITERATIONS):  # Newton's method
        probability = 1 / (1 + np.exp(-inputs @ found))
        slope = inputs.T @ (weights * (present - probability)) - _RIDGE * found
        curvature = (inputs * (weights * probability * (1 - probability))[:, None]).T @ inputs + _RIDGE * np.eye(2)
        found += np.linalg.solve(curvature, slope)
    scale, bias = found[0] / spread, found[1] - found[0] * centre / spread
    others = np.sort(strengths[~present])
    below, up_to = (np.searchsorted(others, strengths[present], side=side) for side in ("left", "right"))
    return Presence(
        scale=float(scale),
        bias=float(bias),
        auc=float((below + up_to).mean() / 2 / len(others)),
        with_target=int(present.sum()),
        without_target=int((~present).sum()),
        checkpoint_sha256=checkpoint_sha256,
    )


def _refuse_one_kind(present: npt.NDArray[np.bool_]) -> None:
    if present.all() or not present.any():
        kind = "without" if present.all() else "with"
        raise BadInputError(
            f"the split has no phrases {kind} a target, and no two images with objects of different classes"
        )


def presence_of(run: Run, checkpoint_sha256: str) -> Presence | None:
    """Return the presence scores of a run; ``None`` if it has none, or has them for another model.

    Raises:
        BadInputError: the record is damaged.
    """
    if not run.presence_path.is_file():
        return None
    try:
        presence = Presence.from_dict(msgspec.json.decode(run.presence_path.read_bytes()))
    except (OSError, msgspec.DecodeError, BadInputError) as error:
        raise BadInputError(f"'{run.presence_path}' is damaged ({error}): run `rsrefseg calibrate` again") from error
    return presence if presence.checkpoint_sha256 == checkpoint_sha256 else None
