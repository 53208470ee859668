"""Published figures on RRSIS-D, shown beside a measured row for context."""

import msgspec

from rsrefseg.engines.records import Record

SOURCE = "the RSRefSeg paper (arXiv 2501.06809v1), its table of methods on RRSIS-D"
FORMAT = "RRSIS-D"
SPLIT = "test"
SPLIT_SAMPLES = 3481
PROTOCOL = "rsrefseg"
METRICS = ("Pr@0.5", "Pr@0.6", "Pr@0.7", "Pr@0.8", "Pr@0.9", "cIoU", "gIoU")

# In percent, in the order of METRICS. Only what is legible in the copy of the table at hand: RSRefSeg-b's row ends
# before gIoU, RSRefSeg-l has none. The table spells RMSIN "RMISN".
_TABLE = {
    "LAVT": (66.93, 60.99, 51.71, 39.79, 23.99, 76.58, 59.05),
    "CrossVLT": (70.38, 63.83, 52.86, 42.11, 25.02, 76.32, 61.00),
    "LGCE": (69.41, 63.06, 53.46, 41.22, 24.27, 76.24, 61.02),
    "RMSIN": (71.96, 65.76, 55.16, 42.03, 25.02, 76.50, 62.27),
    "FIANet": (74.46, 66.96, 56.31, 42.83, 24.13, 76.91, 64.01),
    "RSRefSeg-b": (72.82, 67.35, 56.66, 45.86, 26.78, 76.05),
}
# By method and metric, fractions as measured ones are; a figure that is not legible is missing.
ROWS = {
    method: {metric: round(percent / 100, 4) for metric, percent in zip(METRICS, figures, strict=False)}
    for method, figures in _TABLE.items()
}


class PublishedContext(Record, frozen=True):
    """The rows to show beside a measured one, or why there are none.

    Attributes:
        rows: by method, then by metric; empty if none can be compared.
        reason: one line, if there are no rows.
        cautions: what to know about the rows, one line each.
        source, split: where the rows are printed, and what they were measured on.
    """

    rows: dict[str, dict[str, float]] = msgspec.field(default_factory=dict)
    reason: str = ""
    cautions: tuple[str, ...] = ()
    source: str = SOURCE
    split: str = f"{SPLIT} of {FORMAT}"


def published_context(data_format: str, split: str, samples: int, protocol: str, shuffled: bool) -> PublishedContext:
    """The rows for a measurement.

    Made scenes have the layout of RRSIS-D too, so the number of expressions must be that of the real split.

    Args:
        data_format: as ``Dataset`` names it.
        split: that was measured.
        samples: number of expressions measured.
        protocol: of the measurement.
        shuffled: whether the phrases were exchanged within each image.
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
