"""``rsrefseg convert``: imports an RSRefSeg checkpoint in the public layout as a run that can be exported."""

from pathlib import Path
from typing import cast

from msgspec.structs import replace

from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.records import Record
from rsrefseg.engines.system.progress import ProgressLine
from rsrefseg.engines.text import Padding

from ..checkpoints import rsrefseg2_layout
from ..checkpoints.hub import find_model
from ..checkpoints.key_matching import Matches
from ..checkpoints.model_file import digest, model_of
from ..checkpoints.public_files import PublicFiles, fit_config, pin_public_files
from ..checkpoints.sam_file import SAM_FILES, match_sam
from ..checkpoints.siglip_folder import SIGLIP_FILES, SIGLIP_SETTINGS, match_siglip
from ..checkpoints.tensor_files import State, read_wrapped
from ..checkpoints.tokenizer_file import FAST_NAME, TOKENIZER_CONFIG_NAME, tokenizer_bytes
from ..checkpoints.upstream_layout import guess_config, is_partial, match_published, plain_checkpoint, published_name
from ..model.config import ModelConfig, Preset, model_config
from ..model.model import build_model
from ..model.preprocessing import AERIAL_D, PUBLISHED, RSREFSEG2, choose_preprocessing
from .base import BaseKind, BaseWeights
from .imported_run import check_new, reference_inputs, write_imported_run

# Public models use the Hugging Face port of SAM, whose mask decoder has this epsilon instead of 1e-5.
_PORT_NORM_EPSILON = 1e-6
# LoRA alpha of the public checkpoints that hold only the trained part; the files do not say it.
_PARTIAL_ALPHA = 16.0
_SIGLIP, _SIGLIP2 = "google/siglip-so400m-patch14-384", "google/siglip2-so400m-patch16-512"


class ConvertReport(Record, frozen=True):
    """Result of a conversion: preset, profile, number of tensors and merged adapters, unused ones (``dropped``)."""

    run: str
    preset: str
    profile: str
    tensors: int
    adapters: int
    dropped: tuple[str, ...]
    notes: tuple[str, ...]

    def render(self) -> str:
        """Return the report as lines of text."""
        found = f"{self.tensors} tensors, {self.adapters} LoRA adapters folded"
        return "\n".join(
            [
                f"{self.run}: preset '{self.preset}', profile '{self.profile}', {found}",
                *(f"note: {note}" for note in self.notes),
            ]
        )


def convert_checkpoint(
    file: Path,
    out: Path,
    config: ModelConfig | None = None,
    tokenizer: Path | None = None,
    data: Path | None = None,
    lora_alpha: float | None = None,
    text_padding: str = "longest",
    dense_prompt: bool = True,
    sam: Path | None = None,
    siglip: Path | None = None,
    profile: str | None = None,
) -> ConvertReport:
    """Read a public checkpoint of RSRefSeg or RSRefSeg 2; write a run: model, tokenizer, reference inputs and record.

    Args:
        file: checkpoint in a public layout, with all weights or only what was trained.
        out: run folder to create.
        config: configuration of the checkpoint; None for that of ``sam`` and ``siglip``, or to detect the preset.
        tokenizer: ``tokenizer.json``, ``spiece.model`` or a folder with one of them; by default that of ``siglip``.
        data: data set for the reference inputs; None for rendered scenes.
        lora_alpha: LoRA alpha of the training; None if it equals the rank, or 16 for a file of the trained part.
        text_padding: ``longest`` as published, or ``fixed``.
        dense_prompt: whether the model was trained with SAM's mask prompt.
        sam: SAM's file, folder or hub name, for the weights that the checkpoint lacks; goes with ``siglip``.
        siglip: SigLIP's or SigLIP 2's folder or hub name; an RSRefSeg 2 needs its tokenizer only.
        profile: preprocessing; None for ``aerial-d`` if the file has only the trained part, else ``published``.

    Raises:
        BadInputError: the checkpoint, tokenizer, data set or folder cannot be used. Nothing is written.
        RSRefSegError: the folder cannot be written.
    """
    if not file.is_file():
        raise BadInputError(f"the checkpoint '{file}' is not a file: give a .safetensors or .pth file")
    check_new(out)
    choose_preprocessing(model_config(Preset.TINY).preprocessing, profile)
    state = read_wrapped(file)
    if rsrefseg2_layout.is_rsrefseg2(state):
        if sam is not None or profile not in (None, RSREFSEG2) or text_padding != "longest" or not dense_prompt:
            raise BadInputError(
                f"'{file}' is an RSRefSeg 2, which has all weights and one way to prepare its inputs: leave out --sam, "
                "--profile, --text-padding and --no-dense-prompt"
            )
        return _convert_second(state, file, out, config, tokenizer or siglip, data, lora_alpha)
    if (sam is None) != (siglip is None):
        raise BadInputError("--sam and --siglip go together: give both")
    bases: State | None = None
    if sam is not None and siglip is not None:
        with ProgressLine(f"converting {file}") as progress:
            sam = find_model(sam, SAM_FILES, progress.say)
            siglip = find_model(siglip, SIGLIP_FILES, progress.say, SIGLIP_SETTINGS)
        tokenizer = tokenizer or siglip
        config = fit_config(config or model_config(Preset.B), sam, siglip, keep_sizes=config is not None)
        expected = build_model(config, device="meta").state_dict()
        pairs = (*match_sam(sam, config, expected).pairs, *match_siglip(siglip, config, expected).pairs)
        bases = {published_name(pair.name): pair.tensor for pair in pairs}
    if tokenizer is None:
        raise BadInputError(
            "the checkpoint has no tokenizer: give the one of its SigLIP with --tokenizer (tokenizer.json or "
            f"spiece.model of {_SIGLIP})"
        )
    if lora_alpha is None and is_partial(state):
        lora_alpha = _PARTIAL_ALPHA
    if not is_partial(state):
        bases = sam = siglip = None  # a whole checkpoint: a missing tensor is a fault, not one of the bases
    checkpoint = plain_checkpoint(state, lora_alpha, file, bases)
    config = config or guess_config(checkpoint)
    config = replace(
        config,
        sam=replace(config.sam, decoder_norm_epsilon=_PORT_NORM_EPSILON),
        text_padding=cast(Padding, text_padding),
        dense_prompt=dense_prompt,
        preprocessing=choose_preprocessing(
            config.preprocessing, profile or (AERIAL_D if is_partial(state) else PUBLISHED)
        ),
    )
    # All checks run before the model allocates memory.
    matches = match_published(checkpoint, config, build_model(config, device="meta").state_dict())
    files = pin_public_files(sam, siglip) if sam is not None and siglip is not None else None
    return _write(out, config, matches, checkpoint.adapters, tokenizer, data, files)


def _convert_second(
    state: State,
    file: Path,
    out: Path,
    config: ModelConfig | None,
    tokenizer: Path | None,
    data: Path | None,
    lora_alpha: float | None,
) -> ConvertReport:
    """Convert the tensors of an RSRefSeg 2; ``tokenizer`` is a file, a folder or a hub name."""
    config = config or model_config(Preset.RSREFSEG2)
    if config.rsrefseg2 is None:
        raise BadInputError(f"'{file}' is an RSRefSeg 2, preset '{config.preset}' is not: leave out --preset")
    if tokenizer is None:
        raise BadInputError(
            f"the checkpoint has no tokenizer: give the one of its SigLIP 2 with --siglip (folder or hub name "
            f"{_SIGLIP2})"
        )
    with ProgressLine(f"converting {file}") as progress:
        tokenizer = find_model(tokenizer, ((FAST_NAME,),), progress.say, (TOKENIZER_CONFIG_NAME,))
    checkpoint = rsrefseg2_layout.plain_checkpoint(state, lora_alpha, file)
    expected = build_model(config, device="meta").state_dict()
    matches = rsrefseg2_layout.match_published(checkpoint, config, expected)
    return _write(out, config, matches, checkpoint.adapters, tokenizer, data)


def _write(
    out: Path,
    config: ModelConfig,
    matches: Matches,
    adapters: int,
    tokenizer: Path,
    data: Path | None,
    files: PublicFiles | None = None,
) -> ConvertReport:
    """Fill a model with matched tensors and write its run; ``files`` are the bases of a partial checkpoint."""
    file, content = matches.path, tokenizer_bytes(tokenizer, config)
    inputs = reference_inputs(data, config)
    model = model_of(config, matches)
    base = BaseWeights(BaseKind.CONVERTED, str(file.resolve()), digest(file), files)
    header = {
        "merge": {"adapters": adapters},
        "source": {"base": base.to_dict(), "dropped": matches.dropped},
    }
    run = write_imported_run(out, model, base, content, inputs, header)
    return ConvertReport(
        run=str(run.path),
        preset=str(config.preset),
        profile=config.preprocessing.profile,
        tensors=len(matches.pairs),
        adapters=adapters,
        dropped=matches.dropped,
        notes=matches.notes,
    )
