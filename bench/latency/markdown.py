"""A bench report as Markdown with GitHub's tables, out of its JSON document, be it an older one with less in it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rsrefseg.engines.system.tables import three_digits

_TOTAL = "total"
_UNITS = {
    "cpu_ghz": ("CPU clock, fastest core", "GHz", 1.0),
    "hottest_c": ("hottest sensor", "°C", 1.0),
    "stolen_share": ("cores taken by the hypervisor", "%", 100.0),
    "others_share": ("cores used by other programs", "%", 100.0),
    "elsewhere_share": ("other cores used", "%", 100.0),
    "throttle_events": ("processor slowed itself down", "times", 1.0),
    "quota_held_ms": ("waited for the CPU quota", "ms", 1.0),
    "gpu_mhz": ("GPU clock", "MHz", 1.0),
    "gpu_memory_mhz": ("GPU memory clock", "MHz", 1.0),
    "gpu_c": ("GPU", "°C", 1.0),
    "power_w": ("power", "W", 1.0),
    "gpu_memory_mib": ("device memory used", "MiB", 1.0),
}

Row = Mapping[str, Any]


def render_markdown(document: Mapping[str, Any], picture: str | None = None) -> str:
    """The whole report.

    Args:
        document: as ``as_dict`` gives it; what it lacks is left out.
        picture: file name of ``draw_plot``'s picture, beside the Markdown.
    """
    bundle = document.get("bundle", {})
    model = f"preset {bundle['preset']}" if "preset" in bundle else "a bundle"
    parts = [f"# Latency of {model}", _facts(document)]
    if picture is not None:
        parts.append(f"![First phrase, next phrase, and the stages beside their floors]({picture})")
    parts += _wrong(document)
    parts += _scenarios(document)
    parts.append(_section("Stages beside their floors", _FLOORS_TEXT, _roofline(document)))
    parts.append(_section("Peaks of this machine", "", _peaks(document)))
    parts.append(_section("Floors elsewhere, ms", _ELSEWHERE_TEXT, _expected(document)))
    parts.append(_section("Start-up and memory", _STARTUP_TEXT, _startup(document)))
    parts.append(_section("The device meanwhile", "", _health(document)))
    if notes := document.get("notes"):
        parts.append("## Notes\n\n" + "\n".join(f"- {_cell(note)}" for note in notes))
    return "\n\n".join(part for part in parts if part) + "\n"


_FLOORS_TEXT = (
    "The floor is the longer of all operations of the exported graph at the measured peak and all bytes (weights,"
    " inputs, outputs) at the measured bandwidth. 100% is all this machine can do."
)
_SPANS_TEXT = "Medians in ms, one stage after the other; in brackets the stage's agreement with FP32 PyTorch."
_ELSEWHERE_TEXT = "One picture, one phrase, FP16, at the peaks of these devices: nothing was measured there."
_STARTUP_TEXT = (
    "Processes of their own, contenders in turn, files in the disk cache. Import and load are medians, in brackets the"
    " quickest and the slowest; the first of the processes answers."
)


def _facts(document: Mapping[str, Any]) -> str:
    """What was measured, on what, when and how."""
    machine, bundle, settings = (document.get(name, {}) for name in ("machine", "bundle", "settings"))
    versions = ", ".join(f"{name} {version}" for name, version in machine.get("versions", {}).items())
    precisions = " and ".join(dict.fromkeys(bundle.get("precision", {}).values()))
    digest = bundle.get("digest", "")[:12]
    size = "size" if "picture" not in settings else " x ".join(str(side) for side in settings["picture"]) + " px"
    lines = {
        "Machine": _joined(
            machine.get("cpu"),
            _text("{} of {} cores", machine.get("usable_cores"), machine.get("cores")),
            _text("{:.0f} MiB", machine.get("memory_mib")),
            machine.get("gpu"),
        ),
        "Software": _joined(machine.get("system"), _text("Python {}", machine.get("python")), versions),
        "Bundle": _joined(
            digest and f"`{digest}`",
            precisions,
            _text("{:.0f} MiB", bundle.get("size_mib")),
            "random weights" if bundle.get("random_weights") else "",
        ),
        "Date": document.get("date"),
        "Command": _text("`{}`", document.get("command")),
        "Measured": _joined(_text("{} rounds, contenders in turn", settings.get("rounds")), f"picture of {size}"),
    }
    return "\n".join(f"- {name}: {_cell(text)}" for name, text in lines.items() if text)


def _wrong(document: Mapping[str, Any]) -> list[str]:
    """Who answers otherwise than PyTorch, before any of their times."""
    names = [row["contender"] for row in document.get("latencies", ()) if row.get("wrong")]
    names += [one["name"] for one in document.get("contenders", ()) if one.get("agrees") is False]
    return [
        f"**WRONG: {_cell(name)} answers otherwise than FP32 PyTorch. Its times do not count.**"
        for name in dict.fromkeys(names)
    ]


def _scenarios(document: Mapping[str, Any]) -> list[str]:
    """A section for each scenario, in the document's order."""
    rows = document.get("latencies", ())
    names = dict.fromkeys(row["scenario"] for row in rows)
    legend = "In brackets 95% intervals. First: a new picture. Next: the picture is encoded, the phrases are new."
    parts = [legend] if names else []
    for name in names:
        mine = [row for row in rows if row["scenario"] == name]
        by_span = any(row["span"] != _TOTAL for row in mine)
        title = name.replace("_", " ").capitalize()
        table = _spans(mine) if by_span else _scenario(document, mine)
        parts.append(_section(title, _SPANS_TEXT if by_span else "", table))
    return parts


def _scenario(document: Mapping[str, Any], rows: Sequence[Row]) -> str:
    """A row for each contender."""
    ratios = {(row["contender"], row["scenario"], row["span"]): row for row in document.get("ratios", ())}
    shares = {(row["contender"], row["scenario"]): row for row in document.get("shares", ())}
    reference = next((row["reference"] for row in ratios.values()), "the first")

    def ratio(row: Row) -> str:
        found = ratios.get((row["contender"], row["scenario"], row["span"]))
        return "" if found is None else _with_interval(found, "median", "low", "high", "x")

    def of_first(row: Row) -> str:
        return _text("{:.1%}", shares.get((row["contender"], row["scenario"]), {}).get("median"))

    columns: dict[str, Callable[[Row], str]] = {
        "p50 ms": lambda row: _with_interval(row, "p50_ms", "p50_low_ms", "p50_high_ms"),
        "p90": lambda row: _figure(row.get("p90_ms")),
        "p99": lambda row: _figure(row.get("p99_ms")),
        f"vs {reference}": ratio,
        "images/s": lambda row: _figure(row.get("images_per_s")),
        "phrases/s": lambda row: _figure(row.get("phrases_per_s")),
        "of its first phrase": of_first,
        "of the floor": lambda row: _text("{:.0%}", row.get("floor_share")),
        "agreement": _agreement,
    }
    return _table("contender", {_name(row): row for row in rows}, columns)


def _spans(rows: Sequence[Row]) -> str:
    """A row for each span, a column for each contender."""
    by_span: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_span.setdefault(row["span"].replace("_", " "), {})[row["contender"]] = row
    names = dict.fromkeys(row["contender"] for row in rows)

    def median_of(name: str) -> Callable[[Mapping[str, Row]], str]:
        return lambda span: _marked(span.get(name, {}))

    return _table("span", by_span, {name: median_of(name) for name in names})


def _roofline(document: Mapping[str, Any]) -> str:
    rows = document.get("roofline", ())
    stages = list(dict.fromkeys(row["stage"] for row in rows))
    rows = sorted(rows, key=lambda row: stages.index(row["stage"]))
    spans = {(row["contender"], row["span"]): row for row in document.get("latencies", ())}

    def agreement(row: Row) -> str:
        return _agreement(spans.get((row["contender"], row["stage"]), {}))

    columns: dict[str, Callable[[Row], str]] = {
        "contender": lambda row: row["contender"],
        "precision": lambda row: row.get("precision", ""),
        "GFLOP": lambda row: _figure(_scaled(row.get("flops"), 1e-9)),
        "MB": lambda row: _figure(_scaled(row.get("bytes"), 1e-6)),
        "bound by": lambda row: row.get("bound", ""),
        "floor ms": lambda row: _figure(row.get("floor_ms")),
        "p50 ms": lambda row: _figure(row.get("p50_ms")),
        "of the floor": lambda row: _text("{:.0%}", row.get("share")),
        "agreement": agreement,
    }
    return _table("stage", [(row["stage"].replace("_", " "), row) for row in rows], columns)


def _peaks(document: Mapping[str, Any]) -> str:
    found = document.get("peaks", {})
    devices = {found.get("device", ""): found} if "flops_per_s" in found else found
    names = dict.fromkeys(name for one in devices.values() for name in one.get("flops_per_s", {}))

    def peak_of(name: str) -> Callable[[Row], str]:
        return lambda one: _figure(_scaled(one.get("flops_per_s", {}).get(name), 1e-9))

    columns: dict[str, Callable[[Row], str]] = {f"{name.upper()} GFLOP/s": peak_of(name) for name in names}
    columns["memory GB/s"] = lambda one: _figure(_scaled(one.get("bandwidth_bytes_per_s"), 1e-9))
    columns["threads"] = lambda one: _text("{}", one.get("threads"))
    columns["measured with"] = lambda one: one.get("how", "")
    return _table("device", devices, columns)


def _expected(document: Mapping[str, Any]) -> str:
    devices = document.get("expected_floors_ms", {})
    stages = dict.fromkeys(stage for floors in devices.values() for stage in floors)

    def floor_of(stage: str) -> Callable[[Row], str]:
        return lambda floors: _figure(floors.get(stage))

    return _table("device", devices, {stage.replace("_", " "): floor_of(stage) for stage in stages})


def _startup(document: Mapping[str, Any]) -> str:
    def figure(name: str) -> Callable[[Row], str]:
        return lambda one: _figure(one.get("startup", {}).get(name))

    columns: dict[str, Callable[[Row], str]] = {
        "runs on": lambda one: ", ".join(dict.fromkeys(one.get("providers", {}).values())),
        "threads": lambda one: _text("{}", one.get("threads")),
        "import ms": figure("import_ms"),
        "load ms": lambda one: _with_interval(one.get("startup", {}), "load_ms", "load_least_ms", "load_most_ms"),
        "first answer ms": figure("first_answer_ms"),
        "peak memory MiB": figure("peak_memory_mib"),
        "device memory MiB": figure("device_memory_mib"),
        "error": lambda one: one.get("startup", {}).get("error") or "",
    }
    return _table("contender", {one["name"]: one for one in document.get("contenders", ())}, columns)


def _health(document: Mapping[str, Any]) -> str:
    ranges = document.get("health", {}).get("ranges", {})
    known = {name: ranges[name] for name in _UNITS if name in ranges}

    def end_of(end: str) -> Callable[[tuple[str, Row]], str]:
        return lambda pair: _figure(_scaled(pair[1].get(end), _UNITS[pair[0]][2]))

    columns: dict[str, Callable[[tuple[str, Row]], str]] = {
        "unit": lambda pair: _UNITS[pair[0]][1],
        "least": end_of("min"),
        "median": end_of("median"),
        "most": end_of("max"),
    }
    return _table("", [(_UNITS[name][0], (name, found)) for name, found in known.items()], columns)


def _section(title: str, text: str, table: str) -> str:
    return "\n\n".join(part for part in (f"## {title}", text, table) if part) if table else ""


def _table(
    corner: str, rows: Mapping[str, Any] | Sequence[tuple[str, Any]], columns: Mapping[str, Callable[[Any], str]]
) -> str:
    """Words left, figures right; columns that are empty in every row are left out."""
    pairs = list(rows.items() if isinstance(rows, Mapping) else rows)
    cells = {name: [_cell(read(row)) for _, row in pairs] for name, read in columns.items()}
    kept = [name for name, column in cells.items() if any(column)]
    if not pairs or not kept:
        return ""
    rules = ["---"] + ["---:" if any(text[:1].isdigit() for text in cells[name]) else "---" for name in kept]
    lines = [[corner, *kept], rules]
    lines += [[_cell(name), *(cells[column][index] for column in kept)] for index, (name, _) in enumerate(pairs)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _name(row: Row) -> str:
    return f"**{row['contender']}**" if row.get("wrong") else str(row["contender"])


def _agreement(row: Row) -> str:
    """The worst mask's IoU or the logits' error; bold where the answer is wrong."""
    text = (row.get("agreement") or {}).get("text", "")
    return f"**WRONG {text}**" if row.get("wrong") else text


def _marked(row: Row) -> str:
    figure, agreement = _figure(row.get("p50_ms")), _agreement(row)
    return f"{figure} ({agreement})" if figure and agreement else figure


def _with_interval(row: Row, name: str, low: str, high: str, unit: str = "") -> str:
    figure, ends = _figure(row.get(name)), [_figure(row.get(end)) for end in (low, high)]
    if not figure:
        return ""
    return f"{figure}{unit} [{' - '.join(ends)}]" if all(ends) else f"{figure}{unit}"


def _figure(value: float | None) -> str:
    return "" if value is None else three_digits(value)


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _text(form: str, *values: Any) -> str:
    return "" if any(value is None for value in values) else form.format(*values)


def _joined(*texts: str | None) -> str:
    return ", ".join(text for text in texts if text)


def _cell(text: Any) -> str:
    """One line that cannot end its table's cell."""
    return " ".join(str(text).split()).replace("|", "\\|")
