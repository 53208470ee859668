"""From samples on disk to training batches, in an order that depends on seed and epoch alone."""

import signal
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from rsrefseg.engines.errors import RSRefSegError
from rsrefseg.engines.images.images import read_image, stretch

from .data import TrainingData

Draw = tuple[int, int]  # (image, epoch)


class Example(NamedTuple):
    """One image with some of its phrases: image (3, S, S) uint8, truth (K, S, S) uint8 in {0, 1}."""

    image: Tensor
    phrases: tuple[str, ...]
    truth: Tensor


class Batch(NamedTuple):
    """N images and P phrases.

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
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


class TrainingBatches(TorchDataset[Batch | RSRefSegError]):
    """Batches by their draws. An image's phrases are drawn again in each epoch, by seed, epoch and image alone.

    An input that cannot be used gives the error as the item: it reaches the main process with its class, while
    ``DataLoader`` would raise another one with the worker's traceback as its message.
    """

    def __init__(self, data: TrainingData, image_size: int, phrases_per_image: int, seed: int) -> None:
        self.data, self.image_size = data, image_size
        self.phrases_per_image, self.seed = phrases_per_image, seed

    def count_phrases(self, draws: Sequence[Draw]) -> int:
        """How many phrases these draws have; nothing is read."""
        return sum(min(len(self.data.groups[index]), self.phrases_per_image) for index, _ in draws)

    def example(self, draw: Draw) -> Example:
        """Read one image and the masks of its drawn phrases."""
        index, epoch = draw
        group = self.data.groups[index]
        rng = np.random.default_rng([self.seed, epoch, index])
        order = rng.permutation(len(group))[: self.phrases_per_image]
        chosen = [group[position] for position in sorted(order)]
        image = read_image(chosen[0].image_path)
        size = (image.shape[0], image.shape[1])
        masks = [sample.mask_at(size, self.data.resize_masks)[0] for sample in chosen]
        side, nearest = (self.image_size, self.image_size), cv2.INTER_NEAREST_EXACT
        truth = np.stack([cv2.resize(mask.astype(np.uint8), side, interpolation=nearest) for mask in masks])
        return Example(
            torch.from_numpy(stretch(image, self.image_size)),
            tuple(sample.phrase for sample in chosen),
            torch.from_numpy(truth),
        )

    def __getitem__(self, draws: Sequence[Draw]) -> Batch | RSRefSegError:
        try:
            examples = [self.example(draw) for draw in draws]
            tokens = self.data.tokenizer.encode([phrase for example in examples for phrase in example.phrases])
        except RSRefSegError as error:
            return error
        counts = torch.tensor([len(example.phrases) for example in examples])
        return Batch(
            image=torch.stack([example.image for example in examples]),
            input_ids=torch.from_numpy(tokens.input_ids),
            token_mask=torch.from_numpy(tokens.token_mask),
            image_index=torch.repeat_interleave(torch.arange(len(examples)), counts),
            truth=torch.cat([example.truth for example in examples]).unsqueeze(1).float(),
        )


class EpochBatches(Sampler[list[Draw]]):
    """One process's batches of draws for one epoch: a seeded permutation, from ``first_batch`` on.

    A short last batch is kept. Each of n processes takes every n-th batch, one a round, so that a round has the images
    that one process would take with n times the batch size. Where the last round has too few batches, it is filled with
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
        """Whether this process's batch of a round is part of the step."""
        return round_ * self.processes + self.process < self.batches

    def drawn(self, rounds: range) -> list[Draw]:
        """What all processes together take in some rounds, each image once."""
        images_a_round = self.batch_size * self.processes
        taken = _permutation(self.seed, self.epoch, self.size)[
            rounds.start * images_a_round : rounds.stop * images_a_round
        ]
        return [(index, self.epoch) for index in taken]


class BatchLoader:
    """Loads the batches of one epoch at a time, in ``workers`` processes that live as long as this object.

    Set ``sampler.epoch`` and ``sampler.first_batch`` before each iteration.
    """

    def __init__(self, batches: TrainingBatches, sampler: EpochBatches, workers: int, pin_memory: bool = False) -> None:
        self._loader: DataLoader[Batch | RSRefSegError] = DataLoader(
            batches,
            batch_size=None,  # a draw of the sampler is a whole batch
            sampler=sampler,
            num_workers=workers,
            # Not forked: this process may have threads that do not survive it.
            multiprocessing_context="spawn" if workers else None,
            persistent_workers=workers > 0,
            worker_init_fn=_start_worker,
            pin_memory=pin_memory,
        )

    def __iter__(self) -> Iterator[Batch]:
        """Load and yield, in the sampler's order.

        Raises:
            RSRefSegError: an image or phrase cannot be used.
        """
        for item in self._loader:
            if isinstance(item, RSRefSegError):
                raise item
            yield item


def _start_worker(worker: int) -> None:
    """One thread for each worker; the main process alone answers an interrupt."""
    cv2.setNumThreads(0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, size: int) -> tuple[int, ...]:
    """The order of an epoch's images."""
    return tuple(np.random.default_rng([seed, epoch]).permutation(size).tolist())
