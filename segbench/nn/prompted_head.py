"""A head whose layers are computed for each image and prompt, after DoDNet and VerSemi.

Zhang, Xie, Xia, Shen: DoDNet: Learning to Segment Multi-Organ and Tumors from Multiple Partially
Labeled Datasets, CVPR 2021, arXiv:2011.10217.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

HIDDEN = 8  # channels of the prompted layers
# Sizes of what the controller computes: W1, W2, W_organ, W_tumor, b1, b2, b_organ, b_tumor.
SIZES = (HIDDEN * HIDDEN, HIDDEN * HIDDEN, 2 * HIDDEN, 2 * HIDDEN, HIDDEN, HIDDEN, 2, 2)


class Encoded(NamedTuple):
    """Images as the head sees them; all prompts share this."""

    pooled: Tensor  # (N, D), from the bottleneck; D is 0 if the controller sees the prompt only
    features: Tensor  # (N, 8, *S)


class PromptedHead(nn.Module):
    """Three 1x1x1 layers with weights that a controller computes for each image and prompt.

    The inputs of the controller are pooled features and a one-hot prompt.
    """

    MOMENTUM = 0.1

    def __init__(
        self, deep: int, width: int, prompts: int, dims: int, sees_image: bool = True
    ) -> None:
        """Build the layers.

        Args:
            deep: channels of the bottleneck.
            width: channels of the full-resolution features.
            prompts: number of prompts.
            dims: 2 or 3.
            sees_image: whether the controller sees the pooled bottleneck.
        """
        super().__init__()
        norm: Any = nn.BatchNorm3d if dims == 3 else nn.BatchNorm2d
        conv: Any = nn.Conv3d if dims == 3 else nn.Conv2d
        self.prompts = prompts
        self.deep_norm = norm(deep) if sees_image else None
        pooled = deep if sees_image else 0
        self.controller = nn.Linear(pooled + prompts, sum(SIZES))
        self.fine_norm = norm(width)
        self.fine_conv = conv(width, HIDDEN, 1)

    def encode(self, bottleneck: Tensor, features: Tensor, updates: int = 1) -> Encoded:
        """Return the head's inputs; update running statistics as ``updates`` equal passes would.

        One pass keeps a fraction 1 - m of the statistics and n passes keep (1 - m)^n, so one pass
        with momentum 1 - (1 - m)^n is equivalent to n passes.
        """
        momentum = 1 - (1 - self.MOMENTUM) ** updates
        self.fine_norm.momentum = momentum
        if self.deep_norm is None:
            pooled = features.new_zeros(len(features), 0)
        else:
            self.deep_norm.momentum = momentum
            pooled = self.deep_norm(bottleneck).relu().flatten(2).mean(2)
        return Encoded(pooled, self.fine_conv(self.fine_norm(features).relu()))

    def forward(self, images: Encoded, prompts: Tensor) -> Tensor:
        """Return logits (N, P, 2, *S) for P prompts per image; ``prompts`` (N, P) count from 0."""
        every_prompt = torch.arange(self.prompts, device=prompts.device)
        one_hot = prompts.unsqueeze(2) == every_prompt  # (N, P, T + 1)
        pooled = images.pooled.unsqueeze(1)
        pooled = pooled.expand(-1, prompts.shape[1], -1)  # (N, P, D)
        one_hot = one_hot.to(pooled.dtype)
        theta = self.controller(torch.cat([pooled, one_hot], 2))  # (N, P, 180)
        return self.layers(images.features, theta)

    @staticmethod
    def layers(features: Tensor, theta: Tensor, branch: int = 0) -> Tensor:
        """Return logits (N, P, 2, *S) for ``features`` (N, 8, *S), weights ``theta`` (N, P, 180).

        Branch 0 is the organ branch, branch 1 the tumor branch.
        """
        n, p = theta.shape[:2]
        w1, w2, w_organ, w_tumor, b1, b2, b_organ, b_tumor = theta.split(SIZES, 2)
        w3, b3 = ((w_organ, b_organ), (w_tumor, b_tumor))[branch]

        def layer(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
            weight = weight.reshape(len(x), -1, HIDDEN)
            return torch.baddbmm(bias.reshape(len(x), -1, 1), weight, x)

        # The first layer is one matrix product for all prompts of an image: (N, 8 P, V).
        hidden = layer(w1, b1, features.flatten(2)).relu_()
        hidden = layer(w2, b2, hidden.view(n * p, HIDDEN, -1)).relu_()
        logits = layer(w3, b3, hidden)  # (N P, 2, V)
        return logits.view(n, p, 2, *features.shape[2:])
