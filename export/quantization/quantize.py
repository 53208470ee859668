"""Writes the quantised form of a bundle. Layers that cost too much accuracy stay in floating point."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import msgspec

from rsrefseg.engines.bundle.bundle import Bundle, file_record
from rsrefseg.engines.bundle.comparison import tensor_error
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.bundle.manifest import KeptFp32, Manifest, MaskJudgement, Quantization, StageRecord
from rsrefseg.engines.bundle.reference import load_reference
from rsrefseg.engines.errors import CheckFailedError
from rsrefseg.engines.onnxruntime.engine import OnnxRuntimeEngine

from ..checks import check_graph
from ..costs import count_weights
from .judge import Judge, Samples, fewest, stage_feeds
from .quantizer import Feeds, quantize_graph
from .sensitivity import layer_errors
from .settings import QUANTIZED_STAGES, QuantizationSettings

# By stage: the modules that stay in floating point, with the reason for each.
Kept = Mapping[Stage, Mapping[str, str]]
_SENSITIVITY_INPUTS = 2  # images, and phrases, whose activations are measured


def quantize_bundle(
    source: Bundle,
    folder: Path,
    settings: QuantizationSettings,
    samples: Samples | None,
    say: Callable[[str], None],
) -> Manifest:
    """Quantise the encoders of a bundle into a new folder, with all other files of the bundle.

    With samples, the most sensitive layers are restored until the masks are within the limits.

    Args:
        source: the original bundle.
        folder: existing folder for the new one. Its ``bundle.json`` is not written.
        settings: kind of quantisation, data and limits.
        samples: see ``choose_samples``; None to judge no masks.
        say: shows a line of progress.

    Returns:
        The manifest of the new bundle.

    Raises:
        CheckFailedError: a graph failed its check, or the limits do not hold unless nearly all layers are restored.
    """
    return _Quantization(source, folder, settings, say).run(samples)


class _Quantization:
    def __init__(
        self, source: Bundle, folder: Path, settings: QuantizationSettings, say: Callable[[str], None]
    ) -> None:
        self.source, self.folder, self.settings, self.say = source, folder, settings, say
        self.feeds: dict[Stage, list[Feeds]] = {stage: [] for stage in QUANTIZED_STAGES}
        self.stages = dict(source.manifest.stages)
        self.written: dict[Stage, frozenset[str]] = {}

    def run(self, samples: Samples | None) -> Manifest:
        """Write the files; see ``quantize_bundle``."""
        records = [self.stages[stage] for stage in QUANTIZED_STAGES]
        quantized = {file.name for record in records for file in (record.graph, *record.data)}
        for record in self.source.manifest.files:
            if record.name not in quantized:
                shutil.copyfile(self.source.verified_path(record.name), self.folder / record.name)
        judgement = None
        if samples is None:
            self._write({})
        else:
            self.feeds = stage_feeds(self.source, samples.calibration)
            self.say("masks of the original")
            judgement = self._restore_until_it_holds(Judge(self.source, samples.judged, self.settings))
        return msgspec.structs.replace(self.source.manifest, stages=self._with_errors(), judgement=judgement)

    def _restore_until_it_holds(self, judge: Judge) -> MaskJudgement:
        """Restore the fewest of the most sensitive layers with which the masks hold, and return their judgement."""
        found: dict[int, MaskJudgement] = {}
        ranked: list[tuple[float, Stage, str]] = []

        def write(count: int) -> None:
            kept: dict[Stage, dict[str, str]] = {}
            for error, stage, module in ranked[:count]:
                kept.setdefault(stage, {})[module] = f"quantised, its product is off by {error:.1e} (relative L2)"
            self._write(kept)

        def holds(count: int) -> bool:
            if count and not ranked:
                ranked.extend(self._rank())
            write(count)
            found[count] = judge.judge(self._bundle())
            self.say(f"{count} layers restored: {found[count]}")
            return found[count].holds

        total = sum(record.quantization.layers for record in self._write({}) if record.quantization)
        best = fewest(total, holds)
        if best == total:
            most = max(found)
            raise CheckFailedError(
                f"the masks do not hold the limits even with {most} of {total} layers restored ({found[most]}, the mean"
                f" must be {self.settings.min_iou_mean}): raise --max-giou-drop, lower --min-iou, or export without"
                f" --{self.settings.precision}"
            )
        write(best)
        return msgspec.structs.replace(found[best], evaluations=judge.evaluations)

    def _rank(self) -> list[tuple[float, Stage, str]]:
        """Return the layers of all stages by their error, the largest first."""
        self.say("measuring the sensitivity of the layers")
        ranked = []
        for stage in QUANTIZED_STAGES:
            feeds = self.feeds[stage][:_SENSITIVITY_INPUTS]
            errors = layer_errors(self.source.graph_path(stage), self.settings, feeds, self.folder)
            ranked += [(error, stage, module) for module, error in errors.items()]
        return sorted(ranked, key=lambda row: -row[0])

    def _write(self, kept: Kept) -> list[StageRecord]:
        """Write the stages whose layers to keep have changed."""
        for stage in QUANTIZED_STAGES:
            modules = kept.get(stage, {})
            if self.written.get(stage) != frozenset(modules):
                self.stages[stage] = self._write_stage(stage, modules)
                self.written[stage] = frozenset(modules)
        return [self.stages[stage] for stage in QUANTIZED_STAGES]

    def _write_stage(self, stage: Stage, kept: Mapping[str, str]) -> StageRecord:
        source, path = self.source.manifest.stages[stage], self.folder / f"{stage}.onnx"
        graph = self.source.graph_path(stage)
        layers = quantize_graph(graph, path, self.settings, frozenset(kept), self.feeds[stage])
        quantization = Quantization(
            kind="static" if self.settings.static else "dynamic",
            layers=layers,
            kept=tuple(KeptFp32(module=module, reason=reason) for module, reason in kept.items()),
        )
        if not layers:
            for record in (source.graph, *source.data):
                shutil.copyfile(self.source.verified_path(record.name), self.folder / record.name)
            return msgspec.structs.replace(source, quantization=quantization)
        opset = self.settings.opset(source.opset)
        model = check_graph(path, source.contract, opset)
        data = path.with_name(f"{path.name}.data")
        return msgspec.structs.replace(
            source,
            graph=file_record(path),
            data=(file_record(data),) if data.exists() else (),
            opset=opset,
            precision=self.settings.precision,
            weight_bytes=count_weights(model)[1],
            quantization=quantization,
        )

    def _with_errors(self) -> dict[Stage, StageRecord]:
        """Return the records of all stages, with the errors of the quantised ones on the reference samples."""
        if self.source.manifest.reference is None:
            return self.stages
        samples, stages = load_reference(self.source), dict(self.stages)
        with OnnxRuntimeEngine(self._bundle()) as engine:
            for stage in QUANTIZED_STAGES:
                record, errors = stages[stage], []
                for sample in samples:
                    found = engine.run(stage, sample.inputs(record.contract))
                    wanted = sample.outputs(record.contract)
                    errors += [tensor_error(wanted[name], found[name]).relative_l2 for name in wanted]
                assert record.quantization is not None
                made = msgspec.structs.replace(record.quantization, relative_l2=max(errors))
                stages[stage] = msgspec.structs.replace(record, quantization=made)
        return stages

    def _bundle(self) -> Bundle:
        return Bundle(self.folder, msgspec.structs.replace(self.source.manifest, stages=self.stages))
