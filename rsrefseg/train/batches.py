"""From samples on disk to training batches, in an order that a seed, an epoch and nothing else decides."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from rsrefseg.engines.errors import BadInputError
from rsrefseg.engines.images.images import read_image, stretch
from rsrefseg.engines.text import Tokenizer

from ..data.loading import SizeMismatch, fit_mask
from ..data.samples import Sample

Draw = tuple[int, int]  # (image group, epoch)


@dataclass(frozen=True, slots=True)
class Example:
    """One image with some of its phrases: image (3, S, S) uint8, truth (K, S, S) uint8 in {0, 1}."""

    image: Tensor
    phrases: tuple[str, ...]
    truth: Tensor


@dataclass(slots=True)
class Batch:
    """N images and the P phrases asked of them.

    image (N, 3, S, S) uint8; input_ids (P, L) int64; token_mask (P, L) bool; image_index (P,) int64;
    truth (P, 1, S, S) float32 in {0, 1}.
    """

    image: Tensor
    input_ids: Tensor
    token_mask: Tensor
    image_index: Tensor
    truth: Tensor

    def to(self, device: torch.device) -> "Batch":
        """The same batch on a device."""
        return Batch(*(getattr(self, name).to(device, non_blocking=True) for name in self.__dataclass_fields__))


class TrainingImages(TorchDataset[Example]):
    """Images with phrases drawn anew for each epoch; the draw depends on seed, epoch and image alone."""

    def __init__(
        self,
        groups: Sequence[tuple[Sample, ...]],
        image_size: int,
        phrases_per_image: int,
        seed: int,
        on_size_mismatch: SizeMismatch,
    ) -> None:
        self.groups = groups
        self.image_size = image_size
        self.phrases_per_image = phrases_per_image
        self.seed = seed
        self.on_size_mismatch = on_size_mismatch

    def __len__(self) -> int:
        return len(self.groups)

    def phrases(self, draws: Sequence[Draw]) -> int:
        """How many phrases these draws hold; nothing is read."""
        return sum(min(len(self.groups[index]), self.phrases_per_image) for index, _ in draws)

    def __getitem__(self, draw: Draw) -> Example:
        index, epoch = draw
        group = self.groups[index]
        rng = np.random.default_rng([self.seed, epoch, index])
        order = rng.permutation(len(group))[: self.phrases_per_image]
        chosen = [group[position] for position in sorted(order)]
        image = read_image(chosen[0].image_path)
        size = (image.shape[0], image.shape[1])
        masks = [fit_mask(sample, size, self.on_size_mismatch)[0] for sample in chosen]
        truth = np.stack([_resize_mask(mask, self.image_size) for mask in masks])
        return Example(
            torch.from_numpy(stretch(image, self.image_size)),
            tuple(sample.phrase for sample in chosen),
            torch.from_numpy(truth),
        )


class EpochBatches(Sampler[list[Draw]]):
    """One process's batches of draws for one epoch: a seeded permutation, from ``first_batch`` on.

    A short last batch is kept. Of several processes each takes every n-th batch, one a round, so that a round has the
    images that one process would take with n times the batch size. Where the last round has too few, it is filled with
    the first ones, which do not count (``counts``).
    """

    def __init__(self, size: int, batch_size: int, seed: int, process: int = 0, processes: int = 1) -> None:
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.process, self.processes = process, processes
        self.batches = -(-size // batch_size)
        self.epoch = 0
        self.first_batch = 0

    def __len__(self) -> int:
        """Batches of a whole epoch, for one process."""
        return -(-self.batches // self.processes)

    def __iter__(self) -> Iterator[list[Draw]]:
        order = _permutation(self.seed, self.epoch, self.size)
        for round_ in range(self.first_batch, len(self)):
            start = (round_ * self.processes + self.process) % self.batches * self.batch_size
            yield [(index, self.epoch) for index in order[start : start + self.batch_size]]

    def counts(self, round_: int) -> bool:
        """Whether this process's batch of a round adds to the step, or only keeps the process busy."""
        return round_ * self.processes + self.process < self.batches

    def drawn(self, rounds: range) -> list[Draw]:
        """What all processes together take in some rounds, each image once."""
        images_a_round = self.batch_size * self.processes
        taken = _permutation(self.seed, self.epoch, self.size)[
            rounds.start * images_a_round : rounds.stop * images_a_round
        ]
        return [(index, self.epoch) for index in taken]


@dataclass(frozen=True, slots=True)
class Collate:
    """Examples to a batch: phrases tokenised, everything stacked."""

    tokenizer: Tokenizer

    def __call__(self, examples: list[Example]) -> Batch:
        """Stack examples; see ``Batch`` for shapes."""
        phrases = [phrase for example in examples for phrase in example.phrases]
        tokens = self.tokenizer.encode(phrases)
        counts = torch.tensor([len(example.phrases) for example in examples])
        return Batch(
            image=torch.stack([example.image for example in examples]),
            input_ids=torch.from_numpy(tokens.input_ids),
            token_mask=torch.from_numpy(tokens.token_mask),
            image_index=torch.repeat_interleave(torch.arange(len(examples)), counts),
            truth=torch.cat([example.truth for example in examples]).unsqueeze(1).float(),
        )


@dataclass(frozen=True, slots=True)
class TrainingBatches:
    """The batches of one epoch at a time; set ``sampler.epoch`` and ``sampler.first_batch`` before iterating."""

    images: TrainingImages
    sampler: EpochBatches
    tokenizer: Tokenizer
    workers: int

    def __iter__(self) -> Iterator[Batch]:
        """Load and yield, in the sampler's order.

        Raises:
            BadInputError: an image or phrase cannot be used.
        """
        loader: DataLoader[Example] = DataLoader(
            self.images, batch_sampler=self.sampler, collate_fn=Collate(self.tokenizer), num_workers=self.workers
        )
        try:
            yield from loader
        except BadInputError as error:
            # A loading process sends its whole traceback as the message; its last line is the error's own.
            line = str(error).splitlines()[-1]
            raise BadInputError(line.partition(": ")[2] if self.workers else line) from error


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, size: int) -> tuple[int, ...]:
    """The order of an epoch's images."""
    return tuple(np.random.default_rng([seed, epoch]).permutation(size).tolist())


def _resize_mask(mask: npt.NDArray[np.bool_], size: int) -> npt.NDArray[np.uint8]:
    """(H, W) bool -> (size, size) uint8 in {0, 1}, nearest."""
    resized: npt.NDArray[np.uint8] = cv2.resize(
        mask.astype(np.uint8), (size, size), interpolation=cv2.INTER_NEAREST_EXACT
    )
    return resized
