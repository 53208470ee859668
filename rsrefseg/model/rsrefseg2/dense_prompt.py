"""Cosine similarity of bilinearly upsampled features and a vector, without the upsampled features."""

import torch
from torch import Tensor, nn


class UpsampledCosine(nn.Module):
    """The cosine of features, resized to a finer grid with aligned corners, and one vector.

    At full size, the resized features of one phrase would take 302 MB. Instead, products of the coarse features are
    resized: a bilinear value is sum_i w_i F_i, so its product with t is sum_i w_i <F_i, t>, and its squared length is
    sum_ij w_i w_j <F_i, F_j> over the four corners of a cell. The weights are products of a row's and a column's, hence
    both sums are matrix products with constants; equal in real arithmetic.

    Args:
        coarse: side of the feature grid.
        fine: side of the result.
    """

    linear: Tensor
    quadratic: Tensor

    def __init__(self, coarse: int, fine: int) -> None:
        super().__init__()
        at = torch.arange(fine, dtype=torch.float64, device="cpu") * ((coarse - 1) / (fine - 1))
        first = at.long().clamp(max=coarse - 2)
        share = at - first
        weights = torch.zeros(fine, coarse, dtype=torch.float64, device="cpu")
        rows = torch.arange(fine, device="cpu")
        weights[rows, first], weights[rows, first + 1] = 1 - share, share
        # Squares of the weights, then products of neighbours, which the square of a sum has twice.
        quadratic = torch.cat([weights**2, 2 * weights[:, :-1] * weights[:, 1:]], dim=1)
        self.register_buffer("linear", weights.float(), persistent=False)
        self.register_buffer("quadratic", quadratic.float(), persistent=False)

    def forward(self, features: Tensor, vector: Tensor) -> Tensor:
        """Compare features (P, C, g, g) with vectors (P, C) and return cosines (P, 1, fine, fine); never in half."""
        if torch.is_autocast_enabled(features.device.type):
            with torch.autocast(features.device.type, enabled=False):
                return self.forward(features.float(), vector.float())
        unit = vector / vector.square().sum(dim=1, keepdim=True).sqrt()
        product = (features * unit[:, :, None, None]).sum(dim=1, keepdim=True)
        upper, lower = features[:, :, :-1], features[:, :, 1:]
        left, right = features[..., :-1], features[..., 1:]
        squares = _dot(features, features)
        diagonals = _dot(upper[..., :-1], lower[..., 1:]) + _dot(upper[..., 1:], lower[..., :-1])
        top = torch.cat([squares, _dot(left, right)], dim=3)
        bottom = torch.cat([_dot(upper, lower), diagonals / 2], dim=3)
        length = self.quadratic @ torch.cat([top, bottom], dim=2) @ self.quadratic.T
        return (self.linear @ product @ self.linear.T) / length.sqrt()


def _dot(left: Tensor, right: Tensor) -> Tensor:
    return (left * right).sum(dim=1, keepdim=True)
