"""Exports for tests of the code around the exporter."""

import shutil
from pathlib import Path

import torch
from torch import nn

from rsrefseg.engines.bundle.contracts import Stage, StageContract
from rsrefseg.export import export


class Shortcut:
    """Double of the exporter: copies existing graphs and records the requested stages."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.exported: list[Stage] = []

    def __call__(self, module: nn.Module, contract: StageContract, path: Path, opset: int) -> None:
        self.exported.append(contract.stage)
        for file in sorted(self.source.glob(f"{path.name}*")):
            shutil.copyfile(file, path.parent / file.name)


def export_job(run: str, out: str, graphs: str | None = None) -> None:
    """Export a run in a new process; with ``graphs``, ``Shortcut`` copies graphs from there."""
    torch.set_num_threads(1)
    if graphs is not None:
        export.export_graph = Shortcut(Path(graphs))
    export.export_run(Path(run), Path(out))
