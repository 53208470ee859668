"""Published scores on RRSIS-D, which ``rsrefseg eval`` shows next to measured ones for context."""

import msgspec

from rsrefseg.engines.records import Record

SOURCE = "the RSRefSeg paper (arXiv 2501.06809v1), its table of methods on RRSIS-D"
FORMAT = "RRSIS-D"
SPLIT = "test"
SPLIT_SAMPLES = 3481
PROTOCOL = "rsrefseg"
METRICS = ("Pr@0.5", "Pr@0.6", "Pr@0.7", "Pr@0.8", "Pr@0.9", "cIoU", "gIoU")

# In percent, in the order of METRICS, as far as legible in the available copy of the table: RSRefSeg-b has no gIoU,
# RSRefSeg-l has no row. The table spells RMSIN "RMISN".
_TABLE = {
    "LAVT": (66.93, 60.99, 51.71, 39.79, 23.99, 76.58, 59.05),
    "CrossVLT": (70.38, 63.83, 52.86, 42.11, 25.02, 76.32, 61.00),
    "LGCE": (69.41, 63.06, 53.46, 41.22, 24.27, 76.24, 61.02),
    "RMSIN": (71.96, 65.76, 55.16, 42.03, 25.02, 76.50, 62.27),
    "FIANet": (74.46, 66.96, 56.31, 42.83, 24.13, 76.91, 64.01),
    "RSRefSeg-b": (72.82, 67.35, 56.66, 45.86, 26.78, 76.05),
}
# By method and metric, as fractions; illegible scores are omitted.
ROWS = {
    method: {metric: round(percent / 100, 4) for metric, percent in zip(METRICS, figures, strict=False)}
    for method, figures in _TABLE.items()
}


class PublishedContext(Record, frozen=True):
    """Published rows for a measurement, or the reason why there are none.

    Attributes:
        rows: scores by method, then by metric; empty if none are comparable.
        reason: one line, if there are no rows.
        cautions: limits of the comparison, one line each.
        source, split: publication of the rows, and the data they were measured on.
    """

    rows: dict[str, dict[str, float]] = msgspec.field(default_factory=dict)
    reason: str = ""
    cautions: tuple[str, ...] = ()
    source: str = SOURCE
    split: str = f"{SPLIT} of {FORMAT}"


def published_context(data_format: str, split: str, samples: int, protocol: str, shuffled: bool) -> PublishedContext:
    """Return the published rows that match a measurement.

    Rendered scenes also have the RRSIS-D layout, so the number of expressions must equal that of the real split.

    Args:
        data_format: name of the format, as in ``Dataset``.
        split: measured split.
        samples: number of measured expressions.
        protocol: protocol of the measurement.
        shuffled: whether phrases were shuffled within each image.
    """
    reasons = {
        f"the data is {data_format}, the published rows are for {FORMAT}": data_format != FORMAT,
        f"the published rows are for the split '{SPLIT}' of {FORMAT}, not '{split}'": split != SPLIT,
        "the phrases were shuffled": shuffled,
        f"the split '{SPLIT}' of {FORMAT} has {SPLIT_SAMPLES:,} expressions, this one {samples:,}": samples
        != SPLIT_SAMPLES,
    }
    if (reason := next((reason for reason, holds in reasons.items() if holds), None)) is not None:
        return PublishedContext(reason=reason)
    cautions = ["the paper does not name the protocols of the other methods: context, not a comparison"]
    if protocol != PROTOCOL:
        cautions.insert(0, f"RSRefSeg's own row follows protocol {PROTOCOL}, the measured one {protocol}")
    return PublishedContext(ROWS, cautions=tuple(cautions))
