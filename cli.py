"""The command line: a command parses, calls one function, prints. Nothing else happens here."""

import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from typer import Argument, Option
from typer.core import TyperGroup

from rsrefseg.engines.errors import BadInputError, MissingPartError
from rsrefseg.engines.system.terminal import finish_output, print_report, print_text, run_app

_Function = TypeVar("_Function", bound=Callable[..., Any])


class PlainHelpGroup(TyperGroup):
    """A group of commands with plain help: importing rich doubles the time of ``--help``."""

    def format_help(self, *args: Any) -> None:
        """Write the help."""
        self.rich_markup_mode = None
        super().format_help(*args)


app = typer.Typer(
    name="rsrefseg",
    help="Segment what a sentence refers to in a remote-sensing image: train, export, prove, measure, run.",
    epilog="First steps: rsrefseg demo",
    cls=PlainHelpGroup,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Make, check and convert data sets.", cls=PlainHelpGroup, rich_markup_mode="rich")
app.add_typer(data_app, name="data")


def _command(of: typer.Typer, name: str, example: str) -> Callable[[_Function], _Function]:
    """Add a command whose help ends with an example."""
    return of.command(name, epilog=f"Example: rsrefseg {example}")


def _panel(title: str) -> Any:
    """Return an ``Option`` whose help is in the panel ``title``."""
    return partial(Option, rich_help_panel=title)


_weights, _recipe, _model, _machine = map(_panel, ("Initial weights", "Recipe", "Model", "Memory and time"))
_counts, _protocol, _report, _checkpoint = map(_panel, ("Scenes", "Protocol", "Files to write", "Checkpoint"))
_graphs, _compiler, _instead, _measured = map(_panel, ("Graphs", "Compiler", "Other reports", "What is measured"))
_remote, _raster, _maps, _batch = map(_panel, ("Without a GPU", "Rasters", "Maps of rasters", "Many images"))
_quantized = _panel("INT8 and FP8")
JsonFlag = Annotated[bool, Option("--json", help="Print one JSON document on standard output, nothing else.")]


def _local_run(run: Path | None) -> Path | None:
    """Return the run, from the hub's cache if it is an address there."""
    from rsrefseg.engines.hub.fetch import local_folder

    return run if run is None else local_folder(run, "run.json")


RunOption = Annotated[
    Path | None,
    Option("--run", callback=_local_run, help="Run folder or hf://ORG/NAME; the latest under ./runs by default."),
]
BundleOption = Annotated[
    Path | None,
    Option("--bundle", help="Bundle folder or hf://ORG/NAME[@REV]; $RSREFSEG_BUNDLE or ./bundle by default."),
]
BackendOption = Annotated[str, Option("--backend", help="Runtime to use; 'auto' takes the best that works.")]
DataOption = Annotated[Path, Option("--data", help="Data set, e.g. an RRSIS-D folder.")]
ImagesOption = Annotated[Path | None, Option("--images", help="Folder of the images, if not the data set's own.")]
ResizeFlag = Annotated[bool, Option("--resize-masks", help="Resize masks of another size than their image.")]


def main() -> None:
    """Run the command line: every expected error becomes one line on standard error and an exit code."""
    sys.exit(finish_output(run_command(sys.argv[1:])[0]))


# Runs one command in this process: its exit code, and what its function returned.
run_command = partial(run_app, app)


def _options(parameters: dict[str, Any], *others: str) -> dict[str, Any]:
    """A command's parameters, without ``--json`` and ``others``: the keyword arguments of the function it calls."""
    return {name: value for name, value in parameters.items() if name not in ("as_json", *others)}


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context, show_version: Annotated[bool, Option("--version", help="Print the version.")] = False
) -> None:
    if show_version:
        from importlib.metadata import PackageNotFoundError, version

        try:
            print_text(version("rsrefseg"))
        except PackageNotFoundError:
            raise MissingPartError("rsrefseg runs from a bare folder: `pip install` it to give it a version") from None
        raise typer.Exit
    _help_without_command(context)


@data_app.callback(invoke_without_command=True)
def _help_without_command(context: typer.Context) -> None:
    if context.invoked_subcommand is None:
        print_text(context.get_help())
        raise typer.Exit


@_command(app, "demo", "demo --quick")
def demo(
    out: Annotated[Path, Option(help="Folder for the scenes and results.")] = Path("demo"),
    quick: Annotated[bool, Option("--quick", help="A small run that only shows that the commands work.")] = False,
    as_json: JsonFlag = False,
) -> Any:
    """Run the whole job on rendered scenes."""
    from rsrefseg.bench.demo import run_demo

    return print_report(run_demo(out, quick, run_command), as_json)


@_command(data_app, "synth", "data synth scenes --train 40 --val 4 --test 8")
def data_synth(
    out: Annotated[Path, Argument(help="Folder to make.")],
    domain: Annotated[str, Option(help="A: temperate, RGB aerial camera. B: arid, hazy, another sensor.")] = "A",
    train: Annotated[int, _counts(min=0, help="Training images.")] = 400,
    val: Annotated[int, _counts(min=0, help="Validation images.")] = 40,
    test: Annotated[int, _counts(min=0, help="Test images.")] = 80,
    size: Annotated[int, _counts(min=64, max=4096, help="Side of an image in pixels.")] = 256,
    seed: Annotated[int, Option(min=0, help="The same seed gives the same bytes.")] = 0,
    max_referrals: Annotated[int, _counts("--phrases", min=1, help="At most this many phrases an image.")] = 6,
    absent: Annotated[int, _counts(min=0, max=20, help="Phrases an image that refer to nothing in it.")] = 0,
    workers: Annotated[int, Option(min=1, help="Processes that render.")] = 1,
    overwrite: Annotated[bool, Option("--overwrite", help="Replace an RRSIS-D folder that is there.")] = False,
    as_json: JsonFlag = False,
) -> Any:
    """Render scenes in the RRSIS-D layout."""
    options = _options(locals())
    from rsrefseg.synth import synthesize

    return print_report(synthesize(**options), as_json)


@_command(data_app, "check", "data check scenes --split test")
def data_check(
    path: Annotated[Path, Argument(help="Data set to read through.")],
    images: ImagesOption = None,
    tokenizer: Annotated[
        Path | None, Option(help="tokenizer.json or spiece.model to count tokens; words by default.")
    ] = None,
    split: Annotated[list[str] | None, Option(help="Check this split alone (repeatable); all by default.")] = None,
    resize_masks: ResizeFlag = False,
    workers: Annotated[int, Option(min=1, show_default="all cores", help="Processes.")] = os.cpu_count() or 1,
    as_json: JsonFlag = False,
) -> Any:
    """Report faults that would affect training."""
    from rsrefseg.data.check import check_dataset

    return print_report(check_dataset(path, images, split or (), tokenizer, resize_masks, workers), as_json)


@_command(data_app, "convert", "data convert scenes scenes.jsonl")
def data_convert(
    path: Annotated[Path, Argument(help="Data set to convert.")],
    out: Annotated[Path, Argument(help="JSON-lines file to write.")],
    images: ImagesOption = None,
    as_json: JsonFlag = False,
) -> Any:
    """Write a data set as JSON lines."""
    from rsrefseg.data.formats import open_dataset
    from rsrefseg.data.jsonl import export_jsonl

    return print_report(export_jsonl(open_dataset(path, images), out), as_json)


@_command(app, "train", "train --data scenes --epochs 1")
def train(
    context: typer.Context,
    path: Annotated[
        list[Path] | None,
        Option("--data", help="Data set, e.g. an RRSIS-D folder; repeatable: their splits are joined."),
    ] = None,
    images: ImagesOption = None,
    share: Annotated[
        list[float] | None,
        Option(help="Share of a data set's images that an epoch draws, one per --data; 1 by default."),
    ] = None,
    drop_shared: Annotated[
        bool | None,
        Option("--drop-shared", help="Leave out training images that another --data has in another split."),
    ] = None,
    config: Annotated[
        str | None, Option(help="TOML file, or b, l or rsrefseg2: the published recipe; s: a smaller one.")
    ] = None,
    preset: Annotated[
        str | None, Option(show_default="tiny", help="tiny, s, b, l or rsrefseg2; as weights given.")
    ] = None,
    out: Annotated[Path | None, Option(help="Run folder; the next free ./runs/NNN by default.")] = None,
    resume: Annotated[bool, Option("--resume", help="Continue the run in --out (or the latest).")] = False,
    from_scratch: Annotated[bool | None, _weights("--from-scratch", help="Train all weights from random ones.")] = None,
    base: Annotated[Path | None, _weights(help="Model file to adapt instead of the shipped base.")] = None,
    sam: Annotated[Path | None, _weights(help="SAM's weights, e.g. sam_vit_b_01ec64.pth, or a hub name.")] = None,
    siglip: Annotated[Path | None, _weights(help="SigLIP's Hugging Face folder, or a hub name.")] = None,
    random_weights: Annotated[bool | None, _weights("--random-weights", help="A random base, to measure with.")] = None,
    tokenizer: Annotated[Path | None, _weights(help="tokenizer.json, where the base has none.")] = None,
    epochs: Annotated[
        int | None, _recipe(show_default="200; 12 from scratch", help="Passes over the training images.")
    ] = None,
    batch_size: Annotated[int | None, _recipe(show_default="8", help="Images a process takes at once.")] = None,
    gradient_accumulation: Annotated[
        int | None, _recipe("--accumulation-steps", show_default="1", help="Batches whose gradients make a step.")
    ] = None,
    gradient_checkpointing: Annotated[
        bool | None, _machine(show_default="no-gradient-checkpointing", help="Less memory for more time, same result.")
    ] = None,
    compile: Annotated[
        bool | None, _machine("--compile", help="Compile transformer blocks; needs a C++ compiler such as g++.")
    ] = None,
    phrases_per_image: Annotated[
        int | None, _recipe(show_default="4; 6 from scratch", help="Phrases drawn per image and epoch.")
    ] = None,
    learning_rate: Annotated[
        float | None, _recipe(show_default="0.0001; 0.001 from scratch", help="Peak of the schedule.")
    ] = None,
    warmup_epochs: Annotated[
        float | None, _recipe(show_default="5.0; 0.5 from scratch", help="Epochs of linear warm-up.")
    ] = None,
    rank: Annotated[int | None, _recipe(show_default="16", help="LoRA rank; also sets alpha.")] = None,
    precision: Annotated[str | None, _machine(show_default="auto", help="auto, fp32, bf16 or fp16.")] = None,
    seed: Annotated[int | None, _recipe(show_default="0", help="Decides every random choice.")] = None,
    workers: Annotated[int | None, _machine(show_default="0", help="Processes that load data.")] = None,
    text_padding: Annotated[str | None, _model(show_default="fixed", help="fixed (64 tokens) or longest.")] = None,
    dense_prompt: Annotated[
        bool | None, _model(show_default="dense-prompt", help="SAM's mask prompt, or none.")
    ] = None,
    profile: Annotated[
        str | None, _model(help="Preprocessing: published or aerial-d; by default that of the files.")
    ] = None,
    resize_masks: Annotated[
        bool | None, Option(show_default="no-resize-masks", help="Resize masks of another size than their image.")
    ] = None,
    as_json: JsonFlag = False,
) -> Any:
    """Adapt a base with LoRA, or train all weights."""
    from rsrefseg.train.command import run_training

    # Every other parameter has the name of a setting: those that were given override the file's.
    own = ("config", "out", "resume", "as_json")
    given = {name: value for name, value in context.params.items() if value not in (None, ()) and name not in own}
    report = run_training(given, config, out, resume)
    return None if report is None else print_report(report, as_json)  # only the main process prints


@_command(app, "eval", "eval --data scenes --worst-cases worst.png")
def evaluate(
    data: DataOption,
    split: Annotated[str, Option(help="Split to evaluate.")] = "test",
    run: Annotated[
        Path | None,
        Option(callback=_local_run, help="Run, merged.safetensors or hf://ORG/NAME; the latest run by default."),
    ] = None,
    base: Annotated[bool, Option("--base", help="The shipped tiny base, before any training.")] = False,
    bundle: BundleOption = None,
    backend: Annotated[str | None, Option(help="Runtime for the bundle; without it, the run.")] = None,
    protocol: Annotated[str, _protocol(help="rsrefseg (original size) or rmsin (480 x 480).")] = "rsrefseg",
    shuffle_phrases: Annotated[
        bool, _protocol("--shuffle-phrases", help="Exchange phrases within images: a phrase-blind score.")
    ] = False,
    absent_below: Annotated[
        float, _protocol(min=0, max=1, help="Empty masks for phrases of a lower presence score.")
    ] = 0.0,
    resize_masks: ResizeFlag = False,
    images: ImagesOption = None,
    save_predictions: Annotated[
        Path | None, _report(metavar="DIR", help="Folder to make: masks, JSON lines, a record.")
    ] = None,
    worst_cases: Annotated[Path | None, _report(metavar="FILE.png", help="Draw the 12 samples of lowest IoU.")] = None,
    as_json: JsonFlag = False,
) -> Any:
    """Score a model by gIoU (mIoU) and cIoU (oIoU)."""
    options = _options(locals())
    from rsrefseg.bench.accuracy.accuracy import run_evaluation
    from rsrefseg.bench.accuracy.report import EvaluationRequest

    return print_report(run_evaluation(EvaluationRequest(**options)), as_json)


@_command(app, "calibrate", "calibrate --data scenes")
def calibrate(
    data: DataOption,
    run: Annotated[Path | None, Argument(help="Run, merged if need be; the latest by default.")] = None,
    split: Annotated[str, Option(help="Split to fit on, never the one that is scored.")] = "val",
    images: ImagesOption = None,
    as_json: JsonFlag = False,
) -> Any:
    """Fit scores that say whether an object is there."""
    from rsrefseg.evaluation.presence import calibrate as calibrate_run

    return print_report(calibrate_run(run, data, split, images), as_json)


@_command(app, "merge", "merge runs/001")
def merge(
    run: Annotated[Path | None, Argument(help="Run; the latest by default.")] = None,
    half: Annotated[bool, Option("--half", help="Store float16: half the size, for shipping a base.")] = False,
    as_json: JsonFlag = False,
) -> Any:
    """Merge LoRA into the model, with proof."""
    from rsrefseg.runs.merge import merge as merge_run
    from rsrefseg.runs.run import Run, latest_run

    return print_report(merge_run(Run(run) if run else latest_run(), half=half), as_json)


@_command(app, "convert", "convert model.pth --preset b --tokenizer tokenizer.json --out runs/converted")
def convert(
    file: Annotated[Path, Argument(help="RSRefSeg or RSRefSeg 2 checkpoint in the public layout.")],
    out: Annotated[Path, Option(help="Run folder to make.")],
    preset: Annotated[str | None, _checkpoint(help="s, b, l or rsrefseg2; by default by its tensors.")] = None,
    tokenizer: Annotated[Path | None, Option(help="Its tokenizer.json or spiece.model, or their folder.")] = None,
    sam: Annotated[Path | None, _checkpoint(help="SAM's file, folder or hub name, where it has no base.")] = None,
    siglip: Annotated[Path | None, _checkpoint(help="SigLIP's folder or hub name; has the tokenizer.")] = None,
    profile: Annotated[
        str | None, _checkpoint(show_default="by its layout", help="Preprocessing: published or aerial-d.")
    ] = None,
    data: Annotated[Path | None, Option(help="Data set for reference inputs; rendered scenes by default.")] = None,
    lora_alpha: Annotated[
        float | None, _checkpoint(help="LoRA alpha it was trained with; its rank, or 16 without base.")
    ] = None,
    text_padding: Annotated[str, _checkpoint(help="longest (as published) or fixed (64 tokens).")] = "longest",
    dense_prompt: Annotated[bool, _checkpoint(help="Whether it was trained with SAM's mask prompt.")] = True,
    as_json: JsonFlag = False,
) -> Any:
    """Convert a public checkpoint to a run."""
    options = _options(locals(), "preset")
    from rsrefseg.model.config import model_config
    from rsrefseg.runs.convert import convert_checkpoint

    config = model_config(preset) if preset is not None else None
    return print_report(convert_checkpoint(**options, config=config), as_json)


@_command(app, "export", "export --fp16")
def export(
    run: Annotated[
        Path | None,
        Argument(callback=_local_run, help="Run or hf://ORG/NAME, merged if need be; the latest by default."),
    ] = None,
    fp16: Annotated[bool, Option("--fp16", help="Half precision written in the graphs.")] = False,
    plan: Annotated[Path | None, Option(help="With --fp16: blocks that stay float32 (parity --bisect).")] = None,
    fp32_sums: Annotated[
        str | None, Option(metavar="STAGES", help="With --fp16: stages that sum products in FP32 (parity --audit).")
    ] = None,
    int8: Annotated[bool, _quantized("--int8", help="Encoders in INT8, for CPUs; with --fp16 for TensorRT.")] = False,
    fp8: Annotated[bool, _quantized("--fp8", help="With --fp16: encoders in FP8 (E4M3), for Ada and later.")] = False,
    data: Annotated[
        Path | None, _quantized(help="Data set to judge masks on, and to calibrate for openvino and tensorrt.")
    ] = None,
    images: ImagesOption = None,
    split: Annotated[
        str | None, _quantized(show_default="val", help="Its split, never the one that is scored.")
    ] = None,
    max_giou_drop: Annotated[
        float | None, _quantized(min=0, show_default="0.002", help="Restore layers until gIoU falls by no more.")
    ] = None,
    min_iou: Annotated[
        float | None, _quantized(min=0, max=1, help="Restore layers until no mask's IoU with FP32 is below this.")
    ] = None,
    out: Annotated[Path | None, Option(help="Bundle; $RSREFSEG_BUNDLE or ./bundle by default.")] = None,
    base: Annotated[bool, Option("--base", help="The shipped tiny base, before any training.")] = False,
    random_weights: Annotated[
        str | None, Option(metavar="PRESET", help="Make a run of random weights to measure with.")
    ] = None,
    target: Annotated[
        str | None, _graphs(help="onnxruntime, onnxruntime-cuda, openvino or tensorrt (default with --fp16).")
    ] = None,
    attention: Annotated[
        str | None,
        _graphs(metavar="windowed=FORM,global=FORM:PARTS,mlp=PARTS", help="Published, additive, folded or padded."),
    ] = None,
    check: Annotated[
        bool | None,
        _remote("--check/--no-check", help="Compile the graphs; by default for tensorrt, with tensorrt-rtx installed."),
    ] = None,
    as_json: JsonFlag = False,
) -> Any:
    """Write the bundle of five ONNX graphs."""
    from rsrefseg.engines.tensorrt.command import checks_export, with_check
    from rsrefseg.export.export import export_run
    from rsrefseg.export.precision.plan import choose_plan
    from rsrefseg.export.settings import ExportSettings, Target, choose_quantization, parse_fp32_sums, parse_target

    runtime = parse_target(target)
    limits = {"max_giou_drop": max_giou_drop, "min_iou": min_iou}
    quantization = choose_quantization(int8, fp8, fp16, runtime, data=data, images=images, split=split, **limits)
    settings = ExportSettings(choose_plan(fp16, plan), runtime, attention, parse_fp32_sums(fp32_sums), quantization)
    checked = checks_export(check, settings.runtime is Target.TENSORRT)
    exported = export_run(run, out, settings, preset=random_weights, base=base)
    return print_report(with_check(exported, checked), as_json)


@_command(app, "build", "build")
def build(
    bundle: BundleOption = None,
    stages: Annotated[str | None, Option(help="Comma-separated stages; all by default.")] = None,
    workspace_mib: Annotated[int | None, _compiler(help="Scratch memory of a layer, MiB; as before, or 4096.")] = None,
    optimization_level: Annotated[int | None, _compiler(help="0 (quick to build) to 5; as before, or 3.")] = None,
    force: Annotated[bool, _compiler("--force", help="Build current engines again as well.")] = False,
    check: Annotated[bool, _remote("--check", help="Write nothing: check that all graphs compile and fuse.")] = False,
    runtime: Annotated[str, _remote(help="tensorrt: for this GPU. tensorrt-rtx: for --gpus.")] = "tensorrt",
    gpus: Annotated[str | None, _remote(help="With tensorrt-rtx or --check: e.g. sm86,rtx-4090.")] = None,
    out: Annotated[Path | None, _remote(help="With tensorrt-rtx: folder to make; ./engines by default.")] = None,
    as_json: JsonFlag = False,
) -> Any:
    """Build the TensorRT engines of a bundle."""
    options = _options(locals())
    from rsrefseg.engines.tensorrt.command import BuildRequest, run_build

    return print_report(run_build(BuildRequest(**options)), as_json)


@_command(app, "parity", "parity --data scenes")
def parity(
    bundle: BundleOption = None,
    backend: BackendOption = "auto",
    data: Annotated[Path | None, Option(help="Data set for the gIoU difference to torch.")] = None,
    split: Annotated[str, Option(help="Its split.")] = "test",
    run: RunOption = None,
    audit: Annotated[bool, _instead("--audit", help="Instead: activations as a share of float16's range.")] = False,
    bisect: Annotated[bool, _instead("--bisect", help="Instead: the fewest blocks that FP16 keeps in FP32.")] = False,
    plan: Annotated[Path, _instead(help="With --bisect: file for the plan it finds.")] = Path("plan.json"),
    as_json: JsonFlag = False,
) -> Any:
    """Compare a runtime with FP32 PyTorch."""
    if audit and bisect:
        raise BadInputError("--audit and --bisect are two reports: give one of them")
    if (audit or bisect) and data is not None:
        raise BadInputError("--audit and --bisect use the bundle's reference samples: leave --data out")
    if audit:
        from rsrefseg.export.precision.audit import run_audit

        return print_report(run_audit(bundle, run), as_json)
    if bisect:
        from rsrefseg.export.precision.bisection import run_bisect

        return print_report(run_bisect(bundle, run, plan), as_json)
    from rsrefseg.bench.parity.parity import run_parity

    return print_report(run_parity(bundle, backend, data, split, run), as_json)


@_command(app, "bench", "bench --backends torch,onnxruntime --rounds 5")
def bench(
    bundle: BundleOption = None,
    backends: Annotated[
        str,
        Option(
            metavar="NAMES",
            help="Comma-separated: torch, torch-compile, onnx-naive, torch-cuda, BACKEND or BACKEND@BUNDLE.",
        ),
    ] = "torch,auto",
    run: RunOption = None,
    rounds: Annotated[int, _measured(min=3, help="At most; each measures every runner once.")] = 30,
    minutes: Annotated[float, _measured(min=0, help="Start no round later, except the first five.")] = 15.0,
    scenarios: Annotated[
        str, _measured(help="Comma-separated; first_phrase is always among them; all by default.")
    ] = "",
    report: Annotated[Path | None, Option(metavar="DIR", help="Write report.md, .json and .png there.")] = None,
    as_json: JsonFlag = False,
) -> Any:
    """Measure latency, with errors and rooflines."""
    options = _options(locals())
    from rsrefseg.bench.latency.bench import BenchRequest, run_bench

    return print_report(run_bench(BenchRequest(**options)), as_json)


@_command(app, "infer", 'infer img.png "the stadium"')
def infer(
    image: Annotated[
        str, Argument(help="Photo or raster: a file, a URL, an s3:// path; or a folder, a glob, a .txt or .csv list.")
    ],
    phrases: Annotated[list[str], Argument(help="More images, if any, and one or more phrases, each in quotes.")],
    bundle: BundleOption = None,
    backend: BackendOption = "auto",
    out: Annotated[Path, Option(help="Folder for masks, overlay and JSON.")] = Path("results"),
    max_pixels: Annotated[
        int, Option(min=1, help="Refuse images with more pixels, unless read in tiles.")
    ] = 100_000_000,
    threshold: Annotated[
        float, Option(min=0, max=1, help="A pixel is in the mask if its probability is above this.")
    ] = 0.5,
    absent_below: Annotated[
        float, Option(min=0, max=1, help="Empty masks for phrases of a lower presence score.")
    ] = 0.0,
    rle: Annotated[
        bool, Option("--rle", help="Add COCO run lengths of the masks to the JSON; not with tiles.")
    ] = False,
    bands: Annotated[
        str | None, _raster(metavar="R,G,B", help="Bands by number or description, e.g. 4,3,2 or B04,B03,B02.")
    ] = None,
    stretch: Annotated[
        str, _raster(help="auto (2-98 percent unless 8-bit), none, MIN,MAX, sigma:N, or db for SAR.")
    ] = "auto",
    tile: Annotated[str, _raster(help="auto (tiles for large scenes), off, or the side of a tile in pixels.")] = "auto",
    overlap: Annotated[
        int | None, _raster(min=0, show_default="a quarter", help="Pixels that neighbouring tiles share.")
    ] = None,
    probability: Annotated[
        str | None, _maps(metavar="TYPE", help="Also write probabilities: uint8 (in steps of 0.004) or float.")
    ] = None,
    vector: Annotated[
        Path | None, _maps(show_default="GeoJSON", help="File of the polygons: .geojson, .gpkg, .fgb or .shp.")
    ] = None,
    simplify: Annotated[
        float, _maps(min=0, help="Simplify the polygons: largest distance from the exact outline in pixels.")
    ] = 0.0,
    min_area: Annotated[
        str | None, _maps(metavar="AREA", help="Leave out smaller polygons, e.g. 50m2 or 20px.")
    ] = None,
    resume: Annotated[
        bool, _batch("--resume", help="Keep finished results, or tiles of one image, if nothing changed.")
    ] = False,
    shard: Annotated[str | None, _batch(metavar="K/N", help="Take the K-th of N parts, for job arrays.")] = None,
    ray: Annotated[
        str | None, _batch(metavar="ADDRESS", help="Run on Ray: local, auto, or the address of a cluster.")
    ] = None,
    actors: Annotated[
        int | None, _batch(min=1, show_default="one a GPU, else one a node", help="Ray processes that segment.")
    ] = None,
    gpus: Annotated[
        float | None, _batch(min=0, show_default="1 if there are any", help="GPUs of each Ray process, e.g. 0.5.")
    ] = None,
    as_json: JsonFlag = False,
) -> Any:
    """Segment what phrases refer to in an image, or in many."""
    options = _options(locals(), "image", "phrases")
    from rsrefseg.engines.batch import infer_images

    return print_report(infer_images([image, *phrases], **options), as_json)


@_command(app, "download", "download b")
def download(
    preset: Annotated[str, Argument(help="s, b or l; rsrefseg2-rrsisd or rsrefseg2-refsegrs.")],
    as_json: JsonFlag = False,
) -> Any:
    """Download the published weights of SAM and SigLIP, or a trained RSRefSeg 2."""
    from rsrefseg.engines.hub.bases import download_bases
    from rsrefseg.engines.system.progress import ProgressLine

    return print_report(download_bases(preset, ProgressLine("download").say), as_json)


@_command(app, "push", "push bundle ORG/NAME")
def push(
    folder: Annotated[Path, Argument(metavar="DIR", help="Bundle or merged run.")],
    name: Annotated[
        str, Argument(metavar="ORG/NAME", help="Repository on the Hugging Face hub; created if it does not exist.")
    ],
    run: Annotated[
        Path | None, Option(help="Run of a bundle, for the card; the latest by default, if it is the bundle's.")
    ] = None,
    scores: Annotated[
        list[Path] | None, Option(help="JSON of `rsrefseg eval --json`, for the card (repeatable).")
    ] = None,
    private: Annotated[bool, Option("--private", help="Make a new repository private.")] = False,
    as_json: JsonFlag = False,
) -> Any:
    """Upload a bundle or run with a model card."""
    from rsrefseg.export.push import push as push_folder

    return print_report(push_folder(folder, name, run, scores or (), private), as_json)


@_command(app, "doctor", "doctor --json")
def doctor(as_json: JsonFlag = False) -> Any:
    """Say what this machine can run."""
    from rsrefseg.engines.doctor import examine

    return print_report(examine(), as_json)


if __name__ == "__main__":
    main()
