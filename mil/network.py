"""What is trained and kept: a head behind standardisation, a head per backbone where they are fused late, covariates.

Backbones differ in scale by orders of magnitude between dimensions (EfficientNet's pooled features are non-negative
and skewed); a layer norm over the tile would leave that in place and mix dimensions. With the standardisation inside
the network, a model folder needs nothing else to be applied, and no test slide ever enters its statistics.
"""

from collections.abc import Iterable
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

import torch
from torch import Tensor, nn

from .heads import Criterion, Head, MILOutput, build_head
from .spec import HeadSpec

LIMIT = 8.0  # standard deviations: a rare outlier in one dimension must not decide over a whole slide


class Network(Head):
    """Bag → logits. Buffers `mean` and `scale`, each float32 (D,), the same of the covariates (K,), and `zero` (O,).

    `zero` is taken from the logits. It is 0 but where the loss leaves open what they are relative to: Cox's partial
    likelihood is the same for log hazards that are all higher by a number, and each network ends with another. Relative
    to their mean over its training bags, those of several networks can be averaged and compared.
    Covariates add to the logits through a linear layer: so they serve every head, and what the tiles say and what the
    covariates say stay apart.
    """

    mean: Tensor
    scale: Tensor
    zero: Tensor
    covariate_mean: Tensor
    covariate_scale: Tensor

    def __init__(self, spec: HeadSpec):
        super().__init__()
        parts = [replace(spec, dim=dim, blocks=(), covariates=0) for dim in spec.blocks or (spec.dim,)]
        self.heads = nn.ModuleList(build_head(part) for part in parts)
        self.ends = tuple(accumulate((part.dim for part in parts), initial=0))
        self.covariates = nn.Linear(spec.covariates, spec.outputs, bias=False) if spec.covariates else None
        for name, size in (("", spec.dim), ("covariate_", spec.covariates)):
            self.register_buffer(f"{name}mean", torch.zeros(size))
            self.register_buffer(f"{name}scale", torch.ones(size))
        self.register_buffer("zero", torch.zeros(spec.outputs))
        if self.covariates is not None:
            nn.init.zeros_(self.covariates.weight)  # at the start a model knows only tiles

    def fit(self, bags: Iterable[Tensor], covariates: Tensor | None = None) -> None:
        """Set means and scales from bags (n, D), each weighing the same however many tiles it has, and (bags, K).

        A dimension that does not vary in training is switched off (scale 0): its later variation means nothing.
        The bags are passed over once, in float64: they may be a generator over files.
        """
        count, mean = 0, torch.zeros(len(self.mean), dtype=torch.float64)
        square = torch.zeros_like(mean)
        for bag in bags:
            whole = bag.double()
            count, mean, square = count + 1, mean + whole.mean(0).cpu(), square + whole.square().mean(0).cpu()
        _set(self.mean, self.scale, mean / count, square / count)
        if covariates is not None and covariates.numel():
            known = covariates.double()
            _set(self.covariate_mean, self.covariate_scale, known.mean(0), known.square().mean(0))

    def forward(
        self, features: Tensor, mask: Tensor, xy: Tensor | None = None, covariates: Tensor | None = None
    ) -> MILOutput:
        """features (B, N, D) float; mask (B, N) bool, True is a real tile; xy (B, N, 2), tiles; covariates (B, K)."""
        return self.pool(self.standardise(features), mask, xy, covariates)

    def standardise(self, features: Tensor) -> Tensor:
        return self.standardise_(features.to(self.mean.dtype, copy=True))

    def standardise_(self, features: Tensor) -> Tensor:
        """The same in the place of float32 features that nobody else needs, such as a block that `batches` has read."""
        return features.sub_(self.mean).mul_(self.scale).clamp_(-LIMIT, LIMIT)

    def pool(self, features: Tensor, mask: Tensor, xy: Tensor | None, covariates: Tensor | None = None) -> MILOutput:
        """The same of features that are standardised already."""
        told: Tensor | float = 0.0
        if self.covariates is not None and covariates is not None:
            known = ((covariates - self.covariate_mean) * self.covariate_scale).clamp(-LIMIT, LIMIT)
            told = self.covariates(known)
        parts = []
        for head, (start, end) in zip(self.heads, pairwise(self.ends), strict=True):
            part: MILOutput = head(features[..., start:end], mask, xy)
            parts.append(part._replace(logits=part.logits + told - self.zero))
        return parts[0] if len(parts) == 1 else _fused(parts)

    def training_loss(self, output: MILOutput, target: Tensor, criterion: Criterion) -> Tensor:
        """The head's own loss; of heads that are fused late, the mean of theirs: each learns as if alone."""
        parts = output.extra["parts"] if len(self.heads) > 1 else [output]
        heads: list[Any] = list(self.heads)
        losses = [head.training_loss(part, target, criterion) for head, part in zip(heads, parts, strict=True)]
        return torch.stack(losses).mean()


def _fused(parts: list[MILOutput]) -> MILOutput:
    logits = torch.stack([part.logits for part in parts]).mean(0)
    looked = [part.attention for part in parts if part.attention is not None]
    attention = torch.stack(looked).mean(0) if len(looked) == len(parts) else None
    return MILOutput(logits, attention, {"parts": parts})


def _set(mean: Tensor, scale: Tensor, found: Tensor, square: Tensor) -> None:
    spread = (square - found.square()).clamp(min=0).sqrt()
    varies = spread > 1e-6 * found.abs().clamp(min=1e-3)
    mean.copy_(found)
    scale.copy_(torch.where(varies, spread.clamp(min=1e-15).reciprocal(), 0.0))
