"""The Hessian of penalized softmax regression, approximated and factored: a preconditioner.

A cheap form serves most penalties; where conjugate gradients take long, a costlier one is built.
Neither changes the optimum, only how fast it is found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Preconditioner"]

# Images that the approximation is estimated from.
NUM_ROWS = 12_288
# The most unknowns of a factored block: 268 MB, and 0.2 TFLOP to factor.
MAX_UNKNOWNS = 8_192
# Products per direction above which the cheap form is rebuilt, which costs as much as 40 products.
STALE = 15
# Products per direction above which the costlier form is built or rebuilt.
MANY_PRODUCTS = 40
# The largest multiple of the identity that is added to a scaled block to factor it.
MAX_RIDGE = 1e6


class Preconditioner:
    """Applies the inverse of an approximate Hessian, which it rebuilds when it is poor.

    In an orthonormal basis q_1 .. q_K of the class vectors that sum to zero, K = C - 1, block
    (k, l) of the Hessian is sum_i cov(q_k, q_l under p_i) x_i x_i^T / N, plus the penalty where
    k = l. The q are the eigenvectors of the mean covariance, so that the blocks beside the
    diagonal nearly cancel: the cheap form leaves them out, the joint one keeps them all. The sum
    is estimated from images drawn with probability in proportion to the trace of their own
    covariance, 1 - sum_c p_ic^2.

    Args:
        inputs: Images with a last column of ones, float32, (N, D + 1).
    """

    def __init__(self, inputs: Tensor) -> None:
        self._inputs = inputs
        self._contrasts = torch.empty(0)  # float64, (C, K)
        self._scales = torch.empty(0)  # float32, (blocks, unknowns)
        self._factors = torch.empty(0)  # float32, (blocks, unknowns, unknowns), lower
        self._is_joint = False
        self._is_new = False
        self._patience = 0

    def __call__(self, gradient: Tensor) -> Tensor:
        """Return the approximate Hessian's inverse times `gradient`, float64, (C, D + 1)."""
        rotated = (self._contrasts.T @ gradient).float().view_as(self._scales)
        solution = rotated * self._scales
        if self._factors.numel():
            lower = self._factors
            solution = torch.linalg.solve_triangular(lower, solution[..., None], upper=False)
            solution = torch.linalg.solve_triangular(lower.mT, solution, upper=True)[..., 0]
        solution = solution * self._scales
        return self._contrasts @ solution.double().view(-1, gradient.shape[1])

    def start(self, probabilities: Tensor, penalties: Tensor) -> None:
        """Prepare for another penalty: keep the approximation, or build the cheap form.

        Args:
            probabilities: Of each image's classes, float32, (N, C).
            penalties: What the objective adds to the Hessian's diagonal, float64, (D + 1,).
        """
        if not self._scales.numel():
            self._build(probabilities, penalties, joint=False)
        self._is_new = False

    def adapt(self, probabilities: Tensor, penalties: Tensor, num_products: int) -> None:
        """Build a better approximation if the last direction took many products.

        Args:
            probabilities: As for `start`, and so is `penalties`.
            penalties: Of the Hessian's diagonal.
            num_products: With the Hessian, for the last direction.
        """
        if self._is_new and self._is_joint:  # the best form; it becomes poor only with age
            self._patience = max(self._patience, 2 * num_products)
            self._is_new = False
        is_stale = not (self._is_new or self._is_joint)
        if num_products > (STALE if is_stale else self._patience):
            self._build(probabilities, penalties, joint=self._is_joint or self._is_new)
            self._is_new = True

    def _build(self, probabilities: Tensor, penalties: Tensor, *, joint: bool) -> None:
        self._contrasts = _contrasts(probabilities)
        num_contrasts, width = self._contrasts.shape[1], self._inputs.shape[1]
        self._is_joint = joint and num_contrasts * width <= MAX_UNKNOWNS
        self._patience = MANY_PRODUCTS
        rows, weights = _sample(probabilities)
        inputs, p = self._inputs[rows], probabilities[rows]
        q = self._contrasts.float()
        means = p @ q  # (rows, K)

        def covariance(k: int, m: int) -> Tensor:
            return weights * (p @ (q[:, k] * q[:, m]) - means[:, k] * means[:, m])

        if width > MAX_UNKNOWNS:
            squares = inputs.square()
            diagonal = torch.stack([covariance(k, k) @ squares for k in range(num_contrasts)])
            scales = (diagonal + penalties.float()).rsqrt()
            usable = (scales.isfinite() & (scales > 0)).all()
            self._scales = scales if usable else torch.ones_like(scales)
            self._factors = torch.empty(0)
            return
        if self._is_joint:
            blocks = torch.zeros(num_contrasts, width, num_contrasts, width)
            for k in range(num_contrasts):
                for m in range(k + 1):
                    blocks[k, :, m] = (inputs * covariance(k, m)[:, None]).T @ inputs
            blocks = blocks.view(1, num_contrasts * width, num_contrasts * width)
        else:
            blocks = torch.empty(num_contrasts, width, width)
            for k in range(num_contrasts):
                torch.mm((inputs * covariance(k, k)[:, None]).T, inputs, out=blocks[k])
        self._factor(blocks, penalties.float().repeat(num_contrasts).view(len(blocks), -1))

    def _factor(self, blocks: Tensor, penalties: Tensor) -> None:
        """Scale to a unit diagonal, which suits float32, and factor.

        Probabilities of exactly 0 and 1 can leave a diagonal of 0, or below 0 by rounding. Then
        there is no factor, and directions are found without a preconditioner.
        """
        diagonals = blocks.diagonal(dim1=1, dim2=2)
        diagonals += penalties
        self._scales = diagonals.rsqrt()
        blocks *= self._scales[:, :, None]
        blocks *= self._scales[:, None, :]
        ridge = 1e-6
        while blocks.isfinite().all() and ridge < MAX_RIDGE:
            diagonals.fill_(1 + ridge)
            self._factors, failures = torch.linalg.cholesky_ex(blocks)
            if not failures.any():
                return
            ridge *= 10  # with a unit diagonal, a ridge of the matrix's size suffices
        self._scales.fill_(1)
        self._factors = torch.empty(0)


def _contrasts(probabilities: Tensor) -> Tensor:
    """Return the mean covariance's eigenvectors among vectors that sum to zero, (C, C - 1)."""
    num_rows, num_classes = probabilities.shape
    covariance = probabilities.mean(0).diag() - probabilities.T @ probabilities / num_rows
    ones_first = torch.eye(num_classes, dtype=torch.float64)
    ones_first[:, 0] = 1
    basis = torch.linalg.qr(ones_first).Q[:, 1:]
    vectors = torch.linalg.eigh(basis.T @ covariance.double() @ basis).eigenvectors
    contrasts: Tensor = basis @ vectors
    return contrasts


def _sample(probabilities: Tensor) -> tuple[Tensor, Tensor]:
    """Draw images and weights so that their weighted sum estimates the mean over all images.

    Returns:
        Indices, (rows,), about `NUM_ROWS` or all there are; weights, float32, (rows,).
    """
    num_rows = len(probabilities)
    if num_rows <= NUM_ROWS:
        return torch.arange(num_rows), torch.full((num_rows,), 1 / num_rows)
    traces = (1 - probabilities.square().sum(1)).clamp(min=0)
    chances = (traces * (NUM_ROWS / traces.sum())).clamp(max=1)
    drawn = torch.rand(num_rows, generator=torch.Generator().manual_seed(0)) < chances
    return drawn.nonzero()[:, 0], 1 / (chances[drawn] * num_rows)
