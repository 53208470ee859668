"""The model card of a bundle or run on the hub, written from what is recorded."""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.hub.bases import BASES
from rsrefseg.engines.system.tables import Table

CARD_NAME = "README.md"
_SCORE_COLUMNS = ("gIoU", "cIoU", "Pr@0.5", "Pr@0.7", "Pr@0.9")
# Folder of a repository in the hub's cache.
_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)/(?:snapshots|blobs)/")
_NOT_RECORDED = "not recorded"


@dataclass(frozen=True)
class Score:
    """Scores on one split: what was scored (run or bundle), data set, split, protocol, and metrics by name."""

    model: str
    data: str
    split: str
    protocol: str
    samples: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class CardFacts:
    """What a card states.

    Attributes:
        name: repository, ``ORG/NAME``.
        bundle: the bundle, if one is pushed.
        run: record of the run, if it is known.
        scores: scores of the model.
        digests: SHA-256 of every file by name.
        random_weights: whether the weights were never trained.
    """

    name: str
    bundle: Bundle | None
    run: Mapping[str, Any] | None
    scores: Sequence[Score]
    digests: Mapping[str, str]
    random_weights: bool


def model_card(facts: CardFacts) -> str:
    """Return the card as Markdown with the metadata that the hub reads."""
    base = _bases(facts.run)
    parts = [
        _metadata(facts, base),
        f"# {facts.name.partition('/')[2]}",
        "An RSRefSeg model: it segments what a phrase refers to in a remote-sensing image "
        "([paper](https://arxiv.org/abs/2501.06809)). Written by `rsrefseg push`.",
        *(["**The weights are random: the model is for measuring only.**"] if facts.random_weights else []),
        _section("Use", _usage(facts)),
        _section("Architecture", _pairs(_architecture(facts))),
        _section("Training data", _pairs(_data(facts.run))),
        _section("Scores", _scores(facts.scores)),
        _section("Bases and their licences", _pairs(base)),
        _section("Files", _pairs(facts.digests.items(), ("file", "SHA-256"))),
    ]
    return "\n\n".join(parts) + "\n"


def recorded_scores(
    run: Path, record: Mapping[str, Any], metrics: Iterable[Mapping[str, Any]], step: int | None
) -> list[Score]:
    """Return the best validation up to a step in the log of a run; nothing without a validation.

    Args:
        run: the run's folder.
        record: its record.
        metrics: its log.
        step: step of the merged weights, which are the best up to it; None if no step is recorded.
    """
    found = [entry["validation"] for entry in metrics if "validation" in entry and entry["step"] <= (step or 0)]
    best = max(found, key=lambda values: float(values["gIoU"]), default=None)
    split = record["data"].get("validation_split") or "val"
    return [] if best is None else [score_of(best, _data_name(record) or run.name, split)]


def score_of(document: Mapping[str, Any], data: str, split: str) -> Score:
    """Return the scores in a validation, or in the JSON of ``rsrefseg eval``."""
    metrics = {name: document[name] for name in _SCORE_COLUMNS if isinstance(document.get(name), float | int)}
    model = "run" if document.get("bundle_sha256") is None else "bundle"
    return Score(model, data, split, str(document["protocol"]), int(document["samples"]), metrics)


def _metadata(facts: CardFacts, bases: Sequence[tuple[str, str]]) -> str:
    tags = ["remote-sensing", "referring-image-segmentation", *(["onnx"] if facts.bundle is not None else [])]
    lines = ["library_name: rsrefseg", "pipeline_tag: image-segmentation", "tags:", *(f"  - {tag}" for tag in tags)]
    if named := [name for name, _ in bases if re.fullmatch(r"[\w.-]+/[\w.-]+", name)]:
        lines += ["base_model:", *(f"  - {name}" for name in named)]
    return "\n".join(["---", *lines, "---"])


def _section(title: str, text: str) -> str:
    return f"## {title}\n\n{text}"


def _usage(facts: CardFacts) -> str:
    address = f"hf://{facts.name}"
    if facts.bundle is not None:
        lines = ["pip install 'rsrefseg[cpu,hub]'", f'rsrefseg infer IMAGE "the stadium" --bundle {address}']
    else:
        lines = [
            "pip install 'rsrefseg[train,cpu]'",
            f"rsrefseg export {address}",
            'rsrefseg infer IMAGE "the stadium"',
        ]
    return "\n".join(["```bash", *lines, "```"])


def _architecture(facts: CardFacts) -> Iterable[tuple[str, str]]:
    if facts.bundle is not None:
        manifest = facts.bundle.manifest
        yield "preset", manifest.preset
        yield "image", f"{manifest.geometry.image_size} x {manifest.geometry.image_size} pixels"
        yield "phrase", f"{manifest.geometry.text_length} tokens"
        for stage, record in manifest.stages.items():
            size_mb = sum(file.size_bytes for file in (record.graph, *record.data)) / 1e6
            yield f"`{stage}`", f"{record.parameters:,} parameters, {record.precision}, {size_mb:,.1f} MB"
    if facts.run is not None:
        model = facts.run["model"]
        if facts.bundle is None:
            yield "preset", str(model.get("preset"))
        yield "architecture", "RSRefSeg 2" if model.get("rsrefseg2") else "RSRefSeg"
        for part in ("siglip", "sam", *(["rsrefseg2"] if model.get("rsrefseg2") else [])):
            yield f"{part} configuration", f"`{json.dumps(model.get(part))}`"
        if isinstance(total := facts.run.get("parameters", {}).get("total"), int):
            yield "parameters", f"{total:,}, of which {facts.run['parameters'].get('trained', 0):,} were trained"


def _data(run: Mapping[str, Any] | None) -> Iterable[tuple[str, str]]:
    if run is None or not run["data"]:
        return [("training data", _NOT_RECORDED)]
    data, train = run["data"], run["train"]
    adapted = f"LoRA of rank {train['lora']['rank']}" if train.get("lora") else "all weights"
    return [
        ("data set", _data_name(run) or _NOT_RECORDED),
        ("expressions", str(data.get("samples", _NOT_RECORDED))),
        ("SHA-256 of its samples", str(data.get("sha256", _NOT_RECORDED))),
        ("training", f"{adapted}, {train.get('epochs')} epochs, seed {train.get('seed')}"),
    ]


def _data_name(run: Mapping[str, Any]) -> str | None:
    """Return the last part of the path of each data set: the rest says nothing to others."""
    paths = run["data"].get("path") or []
    return ", ".join(Path(path).name for path in ([paths] if isinstance(paths, str) else paths)) or None


def _scores(scores: Sequence[Score]) -> str:
    if not scores:
        return "None recorded. `rsrefseg push --scores FILE` adds those that `rsrefseg eval --json` printed."
    table = Table(
        "Values are fractions. gIoU is also called mIoU, cIoU oIoU.",
        ("of the", "data", "split", "protocol", "samples", *_SCORE_COLUMNS),
        words=4,
    )
    for score in scores:
        figures = (f"{score.metrics[name]:.4f}" if name in score.metrics else "-" for name in _SCORE_COLUMNS)
        table.add(score.model, score.data, score.split, score.protocol, str(score.samples), *figures)
    return table.to_markdown()


def _bases(run: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Return each base of the weights, by its hub name where it was taken from there, and its licence."""
    if run is None:
        return [(_NOT_RECORDED, _NOT_RECORDED)]
    base = run["base"]
    if base.get("kind") == "shipped":
        return [("the tiny base of rsrefseg", "Apache-2.0")]
    if base.get("kind") in ("scratch", "random"):
        return [("random weights", "none")]
    paths = [base["path"]] if base.get("path") or not base.get("files") else []
    paths += [base["files"][part]["path"] for part in ("sam", "siglip")] if base.get("files") else []
    return [_base_row(path) for path in paths]


def _base_row(path: Any) -> tuple[str, str]:
    licences = {one.name: one.licence for bases in BASES.values() for one in bases}
    cached = _CACHED.search(str(path))
    name = f"{cached[1]}/{cached[2]}" if cached else Path(path).name if isinstance(path, str) else _NOT_RECORDED
    return name, licences.get(name, _NOT_RECORDED)


def _pairs(rows: Iterable[tuple[str, str]], columns: tuple[str, str] = ("", "")) -> str:
    table = Table("", columns, words=2)
    for row in rows:
        table.add(*row)
    return table.to_markdown().strip()
