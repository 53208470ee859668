"""Initial weights of a training: random, the shipped tiny base, a model file, or the files of SAM and SigLIP."""

from enum import StrEnum
from importlib import resources
from pathlib import Path

from msgspec.structs import replace

from rsrefseg.engines.errors import BadInputError, MissingPartError
from rsrefseg.engines.records import Record

from ..checkpoints.model_file import digest, is_random, load_model, read_config
from ..checkpoints.public_files import PublicFiles, pin_public_files
from ..model.config import ModelConfig, Preset
from ..model.model import RSRefSeg, build_model

# From random weights, the published bias of -10 keeps the sigmoid closed for most of a short training.
_SCRATCH_LOGIT_BIAS = -4.0


class BaseKind(StrEnum):
    """Source of the initial weights."""

    SCRATCH = "scratch"
    SHIPPED = "shipped"
    FILE = "file"
    FILES = "files"
    RANDOM = "random"
    CONVERTED = "converted"


class BaseWeights(Record, frozen=True):
    """The initial weights as recorded by a run; ``sha256`` identifies the file, which merging reads again.

    ``files`` is set for kind ``files``. ``random_weights`` marks untrained weights, which are for measuring only.
    """

    kind: BaseKind
    path: str | None = None
    sha256: str | None = None
    files: PublicFiles | None = None
    random_weights: bool = False

    def adapted(self, config: ModelConfig) -> ModelConfig:
        """Return ``config`` with ``choose_mask`` of these weights: false if they are random."""
        if config.rsrefseg2 is None:
            return config
        untrained = self.random_weights or self.kind is BaseKind.SCRATCH
        found = None if untrained or self.path is None else read_config(Path(self.path)).rsrefseg2
        choose = found is not None and found.choose_mask
        return replace(config, rsrefseg2=replace(config.rsrefseg2, choose_mask=choose))

    def build(self, config: ModelConfig, seed: int) -> RSRefSeg:
        """Build the model as it was before training, with the other options of ``config``.

        Raises:
            BadInputError: the file is missing, differs from the recorded one, or has other sizes than ``config``.
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
        # A converted model has another epsilon in the decoder's norms; training compensates for it.
        sam = replace(found.config.sam, decoder_norm_epsilon=config.sam.decoder_norm_epsilon)
        second = found.config.rsrefseg2
        if second is not None and config.rsrefseg2 is not None:
            second = replace(second, choose_mask=config.rsrefseg2.choose_mask)
        if (found.config.siglip, sam, second) != (config.siglip, config.sam, config.rsrefseg2):
            raise BadInputError(
                f"the base '{path}' has preset '{found.config.preset}', not the requested '{config.preset}': "
                "give another --base or --preset"
            )
        if found.config == config:
            return found
        model = build_model(config, seed)
        model.load_state_dict(found.state_dict())
        return model


def from_scratch() -> BaseWeights:
    """Return random weights for training from scratch."""
    return BaseWeights(BaseKind.SCRATCH)


def random_weights() -> BaseWeights:
    """Return random weights that are marked as such, for measuring only."""
    return BaseWeights(BaseKind.RANDOM, random_weights=True)


def from_public_files(sam: Path, siglip: Path) -> BaseWeights:
    """Return the weights of SAM's and SigLIP's published files; the prompter is random.

    Raises:
        BadInputError: a file is missing.
    """
    return BaseWeights(BaseKind.FILES, files=pin_public_files(sam, siglip))


def shipped(preset: str) -> BaseWeights:
    """Return the base weights that the package ships.

    Raises:
        MissingPartError: the package ships none for this preset.
    """
    if preset != Preset.TINY:
        raise MissingPartError(
            f"no base weights are shipped for preset '{preset}': give a model file with --base, or --sam and --siglip"
        )
    return BaseWeights(BaseKind.SHIPPED, sha256=digest(shipped_base()))


def from_file(path: Path) -> BaseWeights:
    """Return the weights of a model file, such as a run's ``merged.safetensors``.

    Raises:
        BadInputError: the file does not exist.
    """
    if not path.is_file():
        raise BadInputError(f"base weights '{path}' do not exist")
    return BaseWeights(BaseKind.FILE, str(path.absolute()), digest(path), random_weights=is_random(path))


def shipped_base() -> Path:
    """Return the path of the tiny base in the installed package."""
    return _asset("tiny.safetensors")


def shipped_tokenizer() -> Path:
    """Return the path of the tiny base's tokenizer."""
    return _asset("tokenizer.json")


def _asset(name: str) -> Path:
    path = Path(str(resources.files("rsrefseg"))) / "base" / name
    if not path.is_file():
        raise MissingPartError(f"'{path}' is missing from the installation: install rsrefseg again")
    return path
