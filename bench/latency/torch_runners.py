"""PyTorch as a contender: eager as published, or compiled, on the CPU in float32 or on a GPU in half precision."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from rsrefseg.engines.bundle.bundle import Bundle
from rsrefseg.engines.bundle.contracts import Stage
from rsrefseg.engines.errors import MissingPartError

from .runners import TORCH, Answer, Contender, Tensors, failures_told

if TYPE_CHECKING:
    from torch import nn

    from rsrefseg.model.model import RSRefSeg


@dataclass(frozen=True, slots=True)
class Flavour:
    """One way to run PyTorch: device, whether compiled, and whether autocast to half precision."""

    device: str
    compiled: bool
    half: bool

    def __str__(self) -> str:
        kind = "torch.compile" if self.compiled else "eager"
        return f"{kind} {'FP16 (autocast)' if self.half else 'FP32'}, {self.device.upper()}"


FLAVOURS = {
    TORCH: Flavour("cpu", compiled=False, half=False),
    "torch-compile": Flavour("cpu", compiled=True, half=False),
    "torch-cuda": Flavour("cuda", compiled=False, half=True),
    "torch-compile-cuda": Flavour("cuda", compiled=True, half=True),
}


class TorchContender(Contender):
    """The merged model that the bundle was exported from, of segment-anything's and transformers' modules as published.

    On a GPU matrix products are half precision by autocast, which is how PyTorch's users get it, and everything stays
    on the device from the picture to the masks.

    Args:
        bundle: names the model by its digest.
        run: folder of the run that holds it; default is the latest run.
        name: one of ``FLAVOURS``.
        flavour: another one under that name, for tests.

    Raises:
        MissingPartError: PyTorch is not installed, or no GPU is there for it.
        BadInputError: no run holds that model.
    """

    def __init__(self, bundle: Bundle, run: Path | None, name: str = TORCH, flavour: Flavour | None = None) -> None:
        from rsrefseg.runs.run import exported_run

        super().__init__(bundle)
        self.name = name
        self.flavour = flavour or FLAVOURS[name]
        self._run = exported_run(bundle.root, bundle.manifest.provenance.checkpoint_sha256, run)
        import torch

        from rsrefseg.model import model  # noqa: F401 (so that loading is not charged with it)

        if self.flavour.device == "cuda" and not torch.cuda.is_available():
            raise MissingPartError(f"{name}: this torch {torch.__version__} finds no CUDA GPU here")
        self._torch = torch
        self._threads_before = torch.get_num_threads()
        self._model: RSRefSeg | None = None
        self._stages: dict[Stage, Any] = {}

    @property
    def device(self) -> str:
        """Of its flavour."""
        return self.flavour.device

    def load(self) -> None:
        """Build the model and read its weights; compiling happens when a stage runs first."""
        from rsrefseg.checkpoints.model_file import load_model

        self._torch.set_num_threads(self.threads)
        with failures_told(self.name, "loading"):
            self._model = load_model(self._run.merged_path)
            own_weights(self._model)
            self._model.to(self.flavour.device)
            publish_layer_norms(self._model)
            prepared = self._torch.compile if self.flavour.compiled else lambda module: module
            self._stages = {stage: prepared(self._model.stage(stage)) for stage in Stage}

    def providers(self) -> dict[str, str]:
        """The same for every stage."""
        return dict.fromkeys(Stage, str(self.flavour))

    def precision(self, stage: Stage) -> str:
        """The same for every stage."""
        return "fp16" if self.flavour.half else "fp32"

    def run(self, stage: Stage, tensors: Mapping[str, Any]) -> Tensors:
        """Run a stage's module and wait for it."""
        assert self._stages, "load() comes first"
        contract = self.bundle.manifest.stages[stage].contract
        with failures_told(self.name, f"stage '{stage}'"):
            given = [self._own(tensors[spec.name]) for spec in contract.inputs]
            with self._mode():
                results = self._stages[stage](*given)
            self._wait()
        results = results if isinstance(results, tuple) else (results,)
        return {spec.name: result for spec, result in zip(contract.outputs, results, strict=True)}

    def finish(self, mask_logits: Any, size: tuple[int, int]) -> Answer:
        """As ``finish``, but by PyTorch, as published."""
        from torch.nn import functional as F

        with failures_told(self.name, "upsampling masks"), self._mode():
            logits = mask_logits.float()
            square = F.interpolate(logits, (self.image_size, self.image_size), mode="bilinear", align_corners=False)
            masks = F.interpolate(square, size, mode="bilinear", align_corners=False) > 0
            return Answer(self.to_host(logits[:, 0]), self.to_host(masks[:, 0]))

    def to_host(self, tensor: Any) -> npt.NDArray[Any]:
        """Without a copy where it is there already."""
        array = tensor.cpu().numpy()
        assert isinstance(array, np.ndarray)
        return array

    def close(self) -> None:
        """Free the model and give PyTorch its thread count back."""
        self._model = None
        self._stages.clear()
        self._torch.set_num_threads(self._threads_before)

    @contextlib.contextmanager
    def _mode(self) -> Iterator[None]:
        device, half = self.flavour.device, self.flavour.half
        with self._torch.inference_mode(), self._torch.autocast(device, dtype=self._torch.float16, enabled=half):
            yield

    def _own(self, tensor: Any) -> Any:
        if isinstance(tensor, np.ndarray):
            return self._torch.from_numpy(tensor).to(self.flavour.device)
        return tensor

    def _wait(self) -> None:
        if self.flavour.device == "cuda":
            self._torch.cuda.synchronize()


def own_weights(module: "nn.Module") -> None:
    """Copy weights out of the file that they are mapped from, as published code loads them.

    A system drops pages of files that nobody has read for some seconds, such as during the turns of other contenders,
    and reads them again when they are asked for: that time is not PyTorch's.
    """
    for tensor in (*module.parameters(), *module.buffers()):
        tensor.data = tensor.data.clone()


def publish_layer_norms(module: "nn.Module") -> None:
    """Put segment-anything's own channel layer norms back, in place of those that suit half precision."""
    from segment_anything.modeling.common import LayerNorm2d

    from rsrefseg.model.sam import ChannelLayerNorm

    for name, child in module.named_children():
        if isinstance(child, ChannelLayerNorm):
            original = LayerNorm2d(child.weight.shape[0], child.eps)
            original.weight, original.bias = child.weight, child.bias
            setattr(module, name, original.eval())
        else:
            publish_layer_norms(child)
