"""SAM's attention with relative positions, in three forms that are equal and unlike in speed and memory.

The bias of query i and key j is Rh[i, j] q_i + Rw[i, j] q_i, with the unscaled query, the embedding Rh of the rows
between them and Rw of the columns. What differs is where it is added.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum

import torch
from segment_anything.modeling.image_encoder import Attention, get_rel_pos
from torch import Tensor, nn

from rsrefseg.engines.errors import BadInputError

from ..model.config import SAM_MLP_RATIO, SamConfig
from .projections import attention, folded_projections, linear


class AttentionForm(StrEnum):
    """How the bias gets into the scores.

    ``published`` adds the rows' and the columns' part one after the other, as segment-anything does; ``additive`` adds
    them up first; ``folded`` makes them more channels of the product, softmax([s q, Rh q, Rw q] . [k, row, column]) v
    with the one-hot rows and columns of the keys, which is attention without any bias.
    """

    PUBLISHED = "published"
    ADDITIVE = "additive"
    FOLDED = "folded"


@dataclass(frozen=True, slots=True)
class AttentionChoice:
    """The form of the windowed and of the global blocks, and in how many parts their tokens are taken.

    Parts are rows of the grid: what is computed of one part is all that is in memory at a time, or in a cache. One part
    is what a runtime with fused attention wants.

    Attributes:
        windowed: form of windowed blocks.
        whole: form of global blocks.
        query_parts: of the queries of global blocks.
        mlp_parts: of the tokens that go through a block's MLP.
    """

    windowed: AttentionForm = AttentionForm.PUBLISHED
    whole: AttentionForm = AttentionForm.PUBLISHED
    query_parts: int = 1
    mlp_parts: int = 1


class Target(StrEnum):
    """The runtime that a bundle is exported for. Every runtime runs every bundle; what differs is how fast."""

    ONNXRUNTIME = "onnxruntime"
    ONNXRUNTIME_CUDA = "onnxruntime-cuda"
    OPENVINO = "openvino"
    TENSORRT = "tensorrt"


@dataclass(frozen=True, slots=True)
class TargetForms:
    """What a target gets.

    Attributes:
        windowed: form of windowed blocks.
        whole: form of global blocks.
        scores_mib: how large the float32 scores of one query part of a global block may be; ``None`` for one part.
        reason: by which measurement, when and on what class of machine.
        hidden_mib: how large the float32 activations in the middle of an MLP may be; ``None`` for one part.
    """

    windowed: AttentionForm
    whole: AttentionForm
    scores_mib: int | None
    reason: str
    hidden_mib: int | None = None


# Processor time over cores, so that other work on the machine does not count. Fewer parts than 8 take more memory and
# more parts more time, since each packs the keys anew; taking heads in groups as well gained nothing.
_MEASURED = "single blocks of preset b, 2026-11-25, 2 cores of an AMD EPYC with AVX-512 and BF16"

FORMS: Mapping[Target, TargetForms] = {
    Target.ONNXRUNTIME: TargetForms(
        AttentionForm.FOLDED,
        AttentionForm.ADDITIVE,
        128,
        f"{_MEASURED}, onnxruntime 1.32: a global block takes 505 ms additive in 8 parts, 535 in 16, 630 in 64, "
        "published in 8 520, folded in 8 688; a windowed one 148 ms folded, 151 additive, 154 published; an MLP, "
        "2026-11-27, 2 cores of an AMD EPYC with AVX2: 403 ms whole, 371 in 2 parts, 329 in 4, 319 in 8, 324 in 16",
        hidden_mib=16,
    ),
    Target.OPENVINO: TargetForms(
        AttentionForm.FOLDED,
        AttentionForm.ADDITIVE,
        128,
        f"{_MEASURED}, openvino 2026.4 in BF16: a global block takes 263 ms additive in 8 parts, 277 in 16, 339 in 64,"
        " published in 8 280, folded in 8 366; a windowed one 77 ms folded, 78 published, 79 additive; in FP32 "
        "448, 469, 587, 473, 651 and 134, 131, 134",
    ),
    Target.ONNXRUNTIME_CUDA: TargetForms(
        AttentionForm.FOLDED,
        AttentionForm.FOLDED,
        None,
        "kernels of SAM's whole encoder, preset b in FP16, 2026-11-27, NVIDIA H200, onnxruntime-gpu 1.31: 16.5 ms "
        "folded in one part, 20.3 additive, 19.5 additive as Attention nodes; 8.6 ms of each was padding, now gone; "
        "single blocks there, quickest run: a global one takes 1.18 ms folded, 2.09 additive, 2.24 published, 1.97 "
        "additive as an Attention node; a windowed one 0.56, 0.55, 0.58, 0.59",
    ),
    Target.TENSORRT: TargetForms(
        AttentionForm.FOLDED,
        AttentionForm.FOLDED,
        None,
        "not measured: folded and in one part it is the plain attention that TensorRT has fused kernels for",
    ),
}


def default_attention(config: SamConfig, target: Target = Target.ONNXRUNTIME, half: bool = False) -> AttentionChoice:
    """What ``FORMS`` says for a model of this size: as few parts as keep what is computed of one within its limit.

    In half precision MLPs are taken whole: such graphs are for GPUs, whoever they are exported for.
    """
    forms, tokens = FORMS[target], config.grid_size**2
    scores_bytes = 4 * config.num_heads * tokens**2
    hidden_bytes = 4 * SAM_MLP_RATIO * config.embed_dim * tokens
    return AttentionChoice(
        forms.windowed,
        forms.whole,
        _fewest_parts(config.grid_size, scores_bytes, forms.scores_mib),
        _fewest_parts(config.grid_size, hidden_bytes, None if half else forms.hidden_mib),
    )


def _fewest_parts(rows: int, whole_bytes: int, limit_mib: int | None) -> int:
    if limit_mib is None:
        return 1
    fits = (parts for parts in range(1, rows + 1) if rows % parts == 0 and whole_bytes // parts <= limit_mib << 20)
    return next(fits, rows)


def parse_target(text: str) -> Target:
    """A target by name.

    Raises:
        BadInputError: none has that name.
    """
    if text not in tuple(Target):
        raise BadInputError(f"--target '{text}' is not known: choose one of {', '.join(Target)}")
    return Target(text)


def parse_attention(text: str, default: AttentionChoice) -> AttentionChoice:
    """Read ``windowed=FORM,global=FORM:PARTS,mlp=PARTS``; what is left out stays as in ``default``.

    Raises:
        BadInputError: it says anything else.
    """
    choice = default
    for item in text.split(","):
        kind, _, value = item.strip().partition("=")
        name, _, parts = value.partition(":")
        known = name in tuple(AttentionForm) and (not parts or _is_count(parts))
        if kind == "mlp" and _is_count(value):
            choice = replace(choice, mlp_parts=int(value))
        elif kind == "windowed" and known and not parts:
            choice = replace(choice, windowed=AttentionForm(name))
        elif kind == "global" and known:
            choice = replace(choice, whole=AttentionForm(name), query_parts=int(parts or 1))
        else:
            forms = ", ".join(AttentionForm)
            raise BadInputError(
                f"--attention '{item.strip()}' is not understood: say windowed=FORM,global=FORM:PARTS,mlp=PARTS, "
                f"FORM being one of {forms}"
            )
    return choice


def _is_count(text: str) -> bool:
    return text.isascii() and text.isdigit() and int(text) > 0


class RelativePositionAttention(nn.Module):
    """Attention over the tokens of a grid, whole or by windows; what segment-anything's ``Attention`` between window
    partition and its reverse gives, from the same parameters with folded projections.

    Only real tokens are projected. Those that pad the last windows are zeros: as keys they have the score that the bias
    of their place gives, and as values they are nothing.

    Args:
        original: whose projections and position embeddings are used.
        form: where the bias is added.
        grid_size: of the tokens it will see, H = W.
        window_size: side of the windows; 0 for attention over the whole grid.
        query_parts: in how many parts the queries of a window (or of the grid) are taken; must divide its rows.
        fused: write attention as one operator, but for the folded form.

    Raises:
        BadInputError: the rows cannot be divided so.
    """

    column_embedding: Tensor
    key_places: Tensor

    def __init__(
        self,
        original: Attention,
        form: AttentionForm,
        grid_size: int,
        window_size: int = 0,
        query_parts: int = 1,
        fused: bool = False,
    ) -> None:
        super().__init__()
        self.side = window_size or grid_size
        self.windows = -(-grid_size // self.side)
        if self.side % query_parts:
            raise BadInputError(f"{self.side} rows of queries cannot be taken in {query_parts} equal parts")
        self.form, self.grid_size, self.query_parts = form, grid_size, query_parts
        # Folded queries and keys have more channels than values. ONNX Runtime 1.31 takes that for its operator on CUDA
        # and gives wrong results: 0.16 relative L2 on an H200 (2026-11-27).
        self.fused = fused and form is not AttentionForm.FOLDED
        self.num_heads = original.num_heads
        biases = original.qkv.bias.chunk(3) if original.qkv.bias is not None else (None,) * 3
        query, key, value = (
            linear(weight, bias, weight.dtype)
            for weight, bias in zip(original.qkv.weight.chunk(3), biases, strict=True)
        )
        self.q_proj, self.k_proj, self.v_proj, self.proj = folded_projections(
            query, key, value, original.proj, original.scale
        )
        rows, columns = (
            # (query place, channel, key place), so that a product with the scaled queries gives the bias.
            (get_rel_pos(self.side, self.side, table.detach()).double() / original.scale)
            .to(table.dtype)
            .transpose(1, 2)
            for table in (original.rel_pos_h, original.rel_pos_w)
        )
        self.row_embeddings = nn.ParameterList(
            nn.Parameter(part.contiguous(), requires_grad=False) for part in rows.chunk(query_parts)
        )
        self.register_buffer("column_embedding", columns.contiguous())
        place = torch.eye(self.side, dtype=original.rel_pos_h.dtype)
        channels = torch.zeros(self.side**2, self.q_proj.out_features // self.num_heads, dtype=place.dtype)
        places = torch.cat([channels, place.repeat_interleave(self.side, 0), place.repeat(self.side, 1)], dim=1)
        self.register_buffer("key_places", places, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """(N, H W, C) -> (N, H W, C)."""
        side = self.side
        query = self._heads(self.q_proj(x)).flatten(0, 1)
        key, value = (self._heads(project(x)).flatten(3, 4).flatten(0, 1) for project in (self.k_proj, self.v_proj))
        if self.form is AttentionForm.FOLDED:
            # Room for the places behind the channels, then a sum: putting a constant beside the keys of a varying
            # number of images would have to spread it over them first.
            key = nn.functional.pad(key, (0, 2 * side)) + self.key_places
        if not self.fused:
            # ONNX Runtime and OpenVINO make this turn part of the product. To cut heads in that order is a slow copy:
            # 16 ms instead of 2 in ONNX Runtime, for a global block of preset b.
            key = key.transpose(2, 3)
        # Asked for one part, the exporter would write a Split into one.
        queries = query.chunk(self.query_parts, dim=2) if self.query_parts > 1 else (query,)
        embeddings = zip(queries, self.row_embeddings, strict=True)
        attended = [self._attend(part, embedding, key, value) for part, embedding in embeddings]
        merged = attended[0] if len(attended) == 1 else torch.cat(attended, dim=2)
        # (N windows, heads, side side, C) -> (N, H, W, heads C)
        merged = torch.unflatten(torch.unflatten(merged, 2, (side, side)), 0, (-1, self.windows))
        merged = merged.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)
        merged = torch.unflatten(merged, 0, (-1, self.windows)).flatten(1, 2)
        projected: Tensor = self.proj(merged[:, : self.grid_size, : self.grid_size].flatten(1, 2))
        return projected

    def _heads(self, x: Tensor) -> Tensor:
        """(N, H W, heads C) -> (N rows of windows, windows, heads, side, side, C), with zeros for padding."""
        channels = x.shape[-1]
        if missing := self.windows * self.side - self.grid_size:
            # A column of padding is so many numbers at the end of a row. ONNX Runtime has a fast kernel on CUDA for the
            # last two of four axes, and on an H200 takes 356 microseconds for any others (2026-11-27).
            rows = x.reshape(-1, 1, self.grid_size, self.grid_size * channels)
            x = nn.functional.pad(rows, (0, missing * channels, 0, missing))
        x = x.reshape(-1, self.side, self.windows, self.side, self.num_heads, channels // self.num_heads)
        return x.permute(0, 2, 4, 1, 3, 5)

    def _attend(self, query: Tensor, row_embedding: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(N windows, heads, queries, C) of the queries of some rows.

        Args:
            query: (N windows, heads, rows, side, C).
            row_embedding: (rows, C, side), of these rows to all.
            key: (N windows, heads, C, side side), in the folded form with their places behind the channels; for the one
                operator the last two axes are the other way round.
            value: (N windows, heads, side side, C).
        """
        row_bias = query @ row_embedding
        column_bias = (query.transpose(2, 3) @ self.column_embedding).transpose(2, 3)
        if self.form is AttentionForm.FOLDED:
            query = torch.cat([query, row_bias, column_bias], dim=-1)
            return attention(query.flatten(2, 3), key, value)
        rows, columns, queries = row_bias.unsqueeze(-1), column_bias.unsqueeze(-2), query.flatten(2, 3)
        if self.form is AttentionForm.ADDITIVE or self.fused:
            return attention(queries, key, value, (rows + columns).flatten(4).flatten(2, 3), self.fused)
        scores = torch.unflatten(torch.unflatten(queries @ key, 3, (self.side, self.side)), 2, (-1, self.side))
        attended: Tensor = (scores + rows + columns).flatten(4).flatten(2, 3).softmax(dim=-1) @ value
        return attended
