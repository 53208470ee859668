"""The reference samples of a bundle: real inputs with the outputs of FP32 PyTorch, stage by stage.

A device without PyTorch proves parity against them. ``reference.safetensors`` stores the tensors of sample ``i`` as
``"i/<name>"``: ``image``, ``input_ids``, ``token_mask``, every stage output by its contract name, ``masks`` and
``original_size``. Its header holds the phrases as JSON.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from ..errors import BadInputError, BundleError
from ..system.files import atomic_write_bytes
from .bundle import Bundle
from .contracts import Stage, StageContract

_PHRASES = "phrases"
_MASKS, _ORIGINAL_SIZE = "masks", "original_size"


@dataclass(frozen=True, slots=True, eq=False)
class ReferenceSample:
    """One image with P phrases.

    Attributes:
        phrases: P phrases.
        tensors: by contract name, the inputs ``image`` (1, 3, S, S) uint8, ``input_ids`` and ``token_mask`` (P, L), and
            every output of every stage.
        masks: (P, H, W) bool, the final masks at the image's size.
        original_size: (H, W) of the image in px.
    """

    phrases: tuple[str, ...]
    tensors: Mapping[str, npt.NDArray[Any]]
    masks: npt.NDArray[np.bool_]
    original_size: tuple[int, int]

    def inputs(self, contract: StageContract) -> dict[str, npt.NDArray[Any]]:
        """Return the inputs of a stage by contract name."""
        return {spec.name: self.tensors[spec.name] for spec in contract.inputs}

    def outputs(self, contract: StageContract) -> dict[str, npt.NDArray[Any]]:
        """Return PyTorch's outputs of a stage by contract name."""
        return {spec.name: self.tensors[spec.name] for spec in contract.outputs}


def write_reference(path: Path, samples: Sequence[ReferenceSample]) -> None:
    """Write samples to a file, atomically.

    Raises:
        RSRefSegError: the disk is full or the folder cannot be written.
    """
    from safetensors.numpy import save

    tensors: dict[str, npt.NDArray[Any]] = {}
    for index, sample in enumerate(samples):
        stored = dict(sample.tensors)
        stored["image"] = stored["image"][0]
        stored[_MASKS] = sample.masks
        stored[_ORIGINAL_SIZE] = np.array(sample.original_size, np.int64)
        tensors |= {f"{index}/{name}": np.ascontiguousarray(value) for name, value in stored.items()}
    phrases = json.dumps([list(sample.phrases) for sample in samples])
    # safetensors' own file writer would create a file that only its owner can read.
    atomic_write_bytes(path, save(tensors, metadata={_PHRASES: phrases}))


def load_reference(bundle: Bundle) -> tuple[ReferenceSample, ...]:
    """Read the samples of a bundle and check them against its contracts.

    Raises:
        BundleError: the bundle has no samples, or they do not fit its contracts.
    """
    from safetensors import SafetensorError, safe_open

    record = bundle.manifest.reference
    if record is None:
        raise BundleError(f"the bundle '{bundle.root}' has no reference samples: export it from a trained run")
    path = bundle.verified_path(record.name)
    contracts = {stage: bundle.manifest.stages[stage].contract for stage in Stage}
    try:
        with safe_open(path, framework="np") as stream:
            phrases = msgspec.json.decode(stream.metadata()[_PHRASES], type=list[list[str]])
            return tuple(_sample(stream, index, texts, contracts) for index, texts in enumerate(phrases))
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, BadInputError) as error:
        raise BundleError(f"'{path}' does not fit its bundle ({error}): export it again") from error


def _sample(
    stream: Any, index: int, phrases: Sequence[str], contracts: Mapping[Stage, StageContract]
) -> ReferenceSample:
    tensors: dict[str, npt.NDArray[Any]] = {}
    for contract in contracts.values():
        for spec in (*contract.inputs, *contract.outputs):
            if spec.name not in tensors:
                value = stream.get_tensor(f"{index}/{spec.name}")
                tensors[spec.name] = value[None] if spec.name == "image" else value
        contract.check_inputs({spec.name: tensors[spec.name] for spec in contract.inputs})
        contract.check_outputs({spec.name: tensors[spec.name] for spec in contract.outputs})
    masks = stream.get_tensor(f"{index}/{_MASKS}")
    height, width = (int(size) for size in stream.get_tensor(f"{index}/{_ORIGINAL_SIZE}"))
    if masks.shape != (len(phrases), height, width) or masks.dtype != np.bool_:
        raise ValueError(f"masks of sample {index} are {masks.dtype} {list(masks.shape)}")
    return ReferenceSample(tuple(phrases), tensors, masks, (height, width))
