"""Program for ``torchrun``: trains a run twice, once with other scores in the second process."""

import sys
from dataclasses import replace
from pathlib import Path

import torch

from rsrefseg.evaluation.metrics import MetricsResult, ReferringMetrics
from rsrefseg.runs.base import from_file
from rsrefseg.train.processes import this_process
from tests.support.runs import STEADY
from tests.support.small import train_small


def main(data: Path, base: Path, root: Path) -> None:
    """Train into ``steady`` and ``disagreeing``; each process writes its result to ``finished.N``."""
    torch.set_num_threads(1)
    train_small(data, root / "steady", from_file(base), **STEADY)
    result, process = ReferringMetrics.result, this_process().process_index

    def rounded_otherwise(metrics: ReferringMetrics) -> MetricsResult:
        own = result(metrics)
        return replace(own, gIoU=1 - own.gIoU) if process else own

    ReferringMetrics.result = rounded_otherwise  # type: ignore[method-assign]
    ended = train_small(data, root / "disagreeing", from_file(base), **STEADY)
    (root / f"finished.{process}").write_text(str(ended.position))


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:4]))
