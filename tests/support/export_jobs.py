"""Exports for tests of what lies around the exporter itself."""

import shutil
from pathlib import Path

import torch
from torch import nn

from rsrefseg.engines.bundle.contracts import Stage, StageContract
from rsrefseg.export import export


class Shortcut:
    """Stands in for the exporter: copies graphs that it wrote before, and remembers for which stages it was asked."""

    def __init__(self, source: Path) -> None:
        self.source = source
        self.exported: list[Stage] = []

    def __call__(self, module: nn.Module, contract: StageContract, path: Path, opset: int) -> None:
        self.exported.append(contract.stage)
        for file in sorted(self.source.glob(f"{path.name}*")):
            shutil.copyfile(file, path.parent / file.name)


def export_job(run: str, out: str, graphs: str | None = None) -> None:
    """Export a run in a process of its own; with ``graphs`` by ``Shortcut`` from there."""
    torch.set_num_threads(1)
    if graphs is not None:
        export.export_graph = Shortcut(Path(graphs))
    export.export_run(Path(run), Path(out))
