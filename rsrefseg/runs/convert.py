"""``rsrefseg convert``: imports an RSRefSeg checkpoint in the public layout as a run that can be exported."""

from pathlib import Path
from typing import cast

from msgspec.structs import replace

from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.records import Record
from rsrefseg.engines.text import Padding

from ..checkpoints.key_matching import fill
from ..checkpoints.model_file import digest
from ..checkpoints.tensor_files import read_wrapped
from ..checkpoints.tokenizer_file import tokenizer_bytes
from ..checkpoints.upstream_layout import guess_config, match_published, plain_checkpoint
from ..model.config import ModelConfig
from ..model.model import build_model
from .base import BaseKind, BaseWeights
from .imported_run import check_new, reference_inputs, write_imported_run

# Public models use the Hugging Face port of SAM, whose mask decoder has this epsilon instead of 1e-5.
_PORT_NORM_EPSILON = 1e-6
_SIGLIP = "google/siglip-so400m-patch14-384"


class ConvertReport(Record, frozen=True):
    """Result of a conversion: preset, number of tensors and merged adapters, unused tensors (``dropped``)."""

    run: str
    preset: str
    tensors: int
    adapters: int
    dropped: tuple[str, ...]
    notes: tuple[str, ...]

    def render(self) -> str:
        """Return the report as lines of text."""
        found = f"{self.tensors} tensors, {self.adapters} LoRA adapters folded"
        return "\n".join([f"{self.run}: preset '{self.preset}', {found}", *(f"note: {note}" for note in self.notes)])


def convert_checkpoint(
    file: Path,
    out: Path,
    config: ModelConfig | None = None,
    tokenizer: Path | None = None,
    data: Path | None = None,
    lora_alpha: float | None = None,
    text_padding: str = "longest",
    dense_prompt: bool = True,
) -> ConvertReport:
    """Read a public RSRefSeg checkpoint and write a run: model, tokenizer, reference inputs and record.

    Args:
        file: checkpoint in the public layout.
        out: run folder to create.
        config: configuration of the checkpoint; None to detect the preset from its SAM.
        tokenizer: ``tokenizer.json``, ``spiece.model`` or a folder with one of them.
        data: data set for the reference inputs; None for rendered scenes.
        lora_alpha: LoRA alpha of the training; None if it equals the rank.
        text_padding: ``longest`` as published, or ``fixed``.
        dense_prompt: whether the model was trained with SAM's mask prompt.

    Raises:
        BadInputError: the checkpoint, tokenizer, data set or folder cannot be used. Nothing is written.
        RSRefSegError: the folder cannot be written.
    """
    if not file.is_file():
        raise BadInputError(f"the checkpoint '{file}' is not a file: give a .safetensors or .pth file")
    check_new(out)
    if tokenizer is None:
        raise BadInputError(
            "the checkpoint has no tokenizer: give the one of its SigLIP with --tokenizer (tokenizer.json or "
            f"spiece.model of {_SIGLIP})"
        )
    checkpoint = plain_checkpoint(read_wrapped(file), lora_alpha, file)
    config = config or guess_config(checkpoint)
    config = replace(
        config,
        sam=replace(config.sam, decoder_norm_epsilon=_PORT_NORM_EPSILON),
        text_padding=cast(Padding, text_padding),
        dense_prompt=dense_prompt,
    )
    # All checks run before the model allocates memory.
    matches = match_published(checkpoint, config, build_model(config, device="meta").state_dict())
    content = tokenizer_bytes(tokenizer, config)
    inputs = reference_inputs(data, config)
    model = build_model(config)
    fill(model, matches)
    model.refresh_position_encodings()
    base = BaseWeights(BaseKind.CONVERTED, str(file.resolve()), digest(file))
    header = {
        "merge": {"adapters": checkpoint.adapters},
        "source": {"base": base.to_dict(), "dropped": matches.dropped},
    }
    run = write_imported_run(out, model, base, content, inputs, header)
    return ConvertReport(
        run=str(run.path),
        preset=str(config.preset),
        tensors=len(matches.pairs),
        adapters=checkpoint.adapters,
        dropped=matches.dropped,
        notes=matches.notes,
    )
