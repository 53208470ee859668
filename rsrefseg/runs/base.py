"""What training starts from: random weights, the shipped tiny base, a model file, or the files of SAM and SigLIP."""

from enum import StrEnum
from importlib import resources
from pathlib import Path

from msgspec.structs import replace

from rsrefseg.engines.errors import BadInputError, MissingPartError
from rsrefseg.engines.records import Record

from ..checkpoints.model_file import digest, is_random, load_model
from ..checkpoints.public_files import PublicFiles, pin_public_files
from ..model.config import ModelConfig, Preset
from ..model.model import RSRefSeg, build_model

# From nothing, a published bias of -10 would have to climb for most of a short training before a sigmoid opens.
_SCRATCH_LOGIT_BIAS = -4.0


class BaseKind(StrEnum):
    """Where the weights before training come from."""

    SCRATCH = "scratch"
    SHIPPED = "shipped"
    FILE = "file"
    FILES = "files"
    RANDOM = "random"
    CONVERTED = "converted"


class BaseWeights(Record, frozen=True):
    """The weights before training, as a run records them: ``sha256`` pins the file that merging needs again.

    ``files`` are those of kind ``files``; ``random_weights`` marks weights that nobody ever trained, for measuring.
    """

    kind: BaseKind
    path: str | None = None
    sha256: str | None = None
    files: PublicFiles | None = None
    random_weights: bool = False

    def build(self, config: ModelConfig, seed: int) -> RSRefSeg:
        """The model before training, with ``config``'s own text padding and choice of prompts.

        Raises:
            BadInputError: the file is gone, not the one that was recorded, or of other sizes than ``config``.
        """
        if self.kind is BaseKind.CONVERTED:
            raise BadInputError("this run was converted, not trained: train on its model with --base")
        if self.files is not None:
            return self.files.build(config, seed)
        if self.kind in (BaseKind.RANDOM, BaseKind.SCRATCH):
            model = build_model(config, seed)
            if self.kind is BaseKind.SCRATCH:
                model.attn_prompter.logit_bias.data.fill_(_SCRATCH_LOGIT_BIAS)
            return model
        path = shipped_base() if self.kind is BaseKind.SHIPPED else Path(self.path or "")
        if path.is_file() and self.sha256 is not None and digest(path) != self.sha256:
            raise BadInputError(f"'{path}' is not the base this run was trained on: its SHA-256 differs from run.json")
        found = load_model(path)
        # A converted model has another epsilon in a few norms; training makes up for that.
        sam = replace(found.config.sam, decoder_norm_epsilon=config.sam.decoder_norm_epsilon)
        if (found.config.siglip, sam) != (config.siglip, config.sam):
            raise BadInputError(
                f"the base '{path}' is of preset '{found.config.preset}', not the '{config.preset}' asked for: "
                "give another --base or --preset"
            )
        if found.config == config:
            return found
        model = build_model(config, seed)
        model.load_state_dict(found.state_dict())
        return model


def from_scratch() -> BaseWeights:
    """Random weights, to be trained."""
    return BaseWeights(BaseKind.SCRATCH)


def random_weights() -> BaseWeights:
    """Random weights, stamped as such: for measuring only."""
    return BaseWeights(BaseKind.RANDOM, random_weights=True)


def from_public_files(sam: Path, siglip: Path) -> BaseWeights:
    """SAM's and SigLIP's published files; the prompter is random.

    Raises:
        BadInputError: one of them is missing.
    """
    return BaseWeights(BaseKind.FILES, files=pin_public_files(sam, siglip))


def shipped(preset: str) -> BaseWeights:
    """The base that comes with the package.

    Raises:
        MissingPartError: the preset has none.
    """
    if preset != Preset.TINY:
        raise MissingPartError(
            f"no base weights come with preset '{preset}': give a model file with --base, or --sam and --siglip"
        )
    return BaseWeights(BaseKind.SHIPPED, sha256=digest(shipped_base()))


def from_file(path: Path) -> BaseWeights:
    """A whole model file, such as a run's ``merged.safetensors``.

    Raises:
        BadInputError: there is no such file.
    """
    if not path.is_file():
        raise BadInputError(f"base weights '{path}' do not exist")
    return BaseWeights(BaseKind.FILE, str(path.resolve()), digest(path), random_weights=is_random(path))


def shipped_base() -> Path:
    """File of the tiny base in the installed package."""
    return _asset("tiny.safetensors")


def shipped_tokenizer() -> Path:
    """Tokenizer of the tiny base."""
    return _asset("tokenizer.json")


def _asset(name: str) -> Path:
    path = Path(str(resources.files("rsrefseg"))) / "base" / name
    if not path.is_file():
        raise MissingPartError(f"'{path}' is missing from the installation: install rsrefseg again")
    return path
