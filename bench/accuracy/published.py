"""What others published on RRSIS-D, to be read beside a measured row and never mixed with it."""

from dataclasses import dataclass
from typing import Any

SOURCE = "the RSRefSeg paper (arXiv 2501.06809v1), its table of methods on RRSIS-D"
FORMAT = "RRSIS-D"
SPLIT = "test"
SPLIT_SAMPLES = 3481
PROTOCOL = "rsrefseg"
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
UNCLEAR_NOTE = "? = not legible in the copy of the table at hand; the figure is quoted elsewhere"


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """One method's row, in percent as the table prints it.

    Attributes:
        method: its name.
        precision_at: share of samples that pass each of ``THRESHOLDS``; empty where it is not known.
        cIoU: as in ``MetricsResult``.
        gIoU: as above.
        unclear: names of the figures that could not be read in the table itself.
    """

    method: str
    precision_at: tuple[float, ...]
    cIoU: float  # noqa: N815 (the field's word)
    gIoU: float  # noqa: N815
    unclear: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if len(self.precision_at) not in (0, len(THRESHOLDS)):
            raise ValueError(f"{self.method}: {len(self.precision_at)} precisions for {len(THRESHOLDS)} thresholds")
        if unknown := set(self.unclear) - {"gIoU", "cIoU"}:
            raise ValueError(f"{self.method}: no figure is called {', '.join(sorted(unknown))}")

    def fractions(self) -> dict[str, float | None]:
        """The figures in [0, 1] under the names that measured ones have; None where one is not known."""
        precisions = self.precision_at or (None,) * len(THRESHOLDS)
        figures: dict[str, float | None] = {"gIoU": self.gIoU, "cIoU": self.cIoU}
        figures |= {f"Pr@{threshold}": share for threshold, share in zip(THRESHOLDS, precisions, strict=True)}
        return {name: None if value is None else round(value / 100, 4) for name, value in figures.items()}

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON, fractions like the measured ones."""
        return {"method": self.method, **self.fractions(), "unclear": list(self.unclear)}


# The strongest of the table's earlier methods, then its own. It spells RMSIN "RMISN".
ROWS = (
    PublishedRow("LAVT", (66.93, 60.99, 51.71, 39.79, 23.99), 76.58, 59.05),
    PublishedRow("CrossVLT", (70.38, 63.83, 52.86, 42.11, 25.02), 76.32, 61.00),
    PublishedRow("LGCE", (69.41, 63.06, 53.46, 41.22, 24.27), 76.24, 61.02),
    PublishedRow("RMSIN", (71.96, 65.76, 55.16, 42.03, 25.02), 76.50, 62.27),
    PublishedRow("FIANet", (74.46, 66.96, 56.31, 42.83, 24.13), 76.91, 64.01),
    PublishedRow("RSRefSeg-b", (72.82, 67.35, 56.66, 45.86, 26.78), 76.05, 63.68, ("gIoU",)),
    PublishedRow("RSRefSeg-l", (), 77.24, 64.67, ("cIoU", "gIoU")),
)


@dataclass(frozen=True, slots=True)
class PublishedContext:
    """The rows that belong beside a measured one, or why there are none.

    Attributes:
        rows: empty where none belongs there.
        reason: one line where there are no rows.
        cautions: what to heed when reading the rows, one line each.
    """

    rows: tuple[PublishedRow, ...] = ()
    reason: str = ""
    cautions: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form."""
        if not self.rows:
            return {"rows": [], "reason": self.reason}
        return {
            "source": SOURCE,
            "data": FORMAT,
            "split": SPLIT,
            "cautions": list(self.cautions),
            "rows": [row.as_dict() for row in self.rows],
        }


def published_context(data_format: str, split: str, samples: int, protocol: str, shuffled: bool) -> PublishedContext:
    """The rows for a measurement.

    Made scenes come in the layout of RRSIS-D too, so the number of expressions has to be that of the real split.

    Args:
        data_format: as ``Dataset`` names it.
        split: that was measured.
        samples: how many of it were measured.
        protocol: under which.
        shuffled: whether they were asked with other phrases than their own.
    """
    reason = ""
    if data_format != FORMAT:
        reason = f"the data is {data_format}, the rows at hand are for {FORMAT}"
    elif split != SPLIT:
        reason = f"the rows at hand are for the split '{SPLIT}' of {FORMAT}, not '{split}'"
    elif shuffled:
        reason = "the phrases were shuffled"
    elif samples != SPLIT_SAMPLES:
        reason = (
            f"the split '{SPLIT}' of {FORMAT} has {SPLIT_SAMPLES:,} expressions and this one {samples:,}: other data "
            "in its layout"
        )
    if reason:
        return PublishedContext(reason=reason)
    cautions = [
        "the paper collects the other methods' figures without naming their protocols: context, not a comparison",
        UNCLEAR_NOTE,
    ]
    if protocol != PROTOCOL:
        cautions.insert(0, f"RSRefSeg's own rows follow protocol {PROTOCOL}, the measured one {protocol}")
    return PublishedContext(rows=ROWS, cautions=tuple(cautions))
