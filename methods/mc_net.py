"""MC-Net+: decoders that enlarge their maps in different ways should agree with each other's sharpened predictions.

Wu, Ge, Zhang, Xu, Zhang, Xia, Cai: Mutual consistency learning for semi-supervised medical image segmentation, MedIA
81 (2022) 102530, arXiv:2109.09960. With two decoders MC-Net: Wu, Xu, Ge, Cai, Zhang, MICCAI 2021, arXiv:2103.02911.
Official code: MC-Net (github.com/ycwu1997/MC-Net), consulted through a written specification; nothing copied.

Paper                       Official code                      Here
two or three decoders       --model mcnet3d_v1, mcnet3d_v2     decoders=2, decoders=3 (the default)
two classes                 p^(1/T) / (p^(1/T) + (1-p)^(1/T))  p_c^(1/T) / sum_k p_k^(1/T), the same for two classes;
                                                               as softmax(z / T), which cannot underflow
pseudo labels               differentiable: nothing detached   the same
consistency                 on labeled images too; a sum       the same: two decoders have 2 pairs, three have 6
                            over ordered pairs
-                           Dice only, summed over decoders    the same, averaged over the foreground classes
                            and halved
-                           cross entropy logged, not used     left out
-                           ramp of 40 stairs of 150 steps,    40 stairs over the run, from 1 too: the code's first
                            counted from 1; 15 000 steps       6000 steps; ramp_share=0.4 gives its 15 000
-                           constant learning rate             the protocol's optimizer (-o optim.schedule=constant)
-                           foreground > 0.5 of decoder 1      its class probabilities, the same for two classes
-                           2-D: Dice without factor 2, other  as in 3-D; decoder 1 has transposed convolutions
                            weights, decoder 1 bilinear
best test Dice              best test Dice                     the last weights
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations

import torch
from torch import Tensor

from segbench import Backbone, Batch, Clock, Field, Method, MethodParams, method
from segbench.contracts.method import sigmoid_ramp
from segbench.nn.losses import dice, squared_error

DECODERS = ("transposed", "trilinear", "nearest")


@method("mc_net", paper="Wu et al., MedIA 2022 (MC-Net+)")
class MCNet(Method):
    """One encoder and several decoders; the first decoder predicts."""

    class Params(MethodParams):
        decoders: int = Field(
            3, ge=2, le=3, description="3: MC-Net+; 2: MC-Net, without the nearest-neighbor one"
        )
        weight: float = Field(
            1.0, ge=0, description="weight of the mutual consistency after its ramp"
        )
        supervised_weight: float = Field(
            0.5, gt=0, description="weight of the Dice losses, which are summed over the decoders"
        )
        temperature: float = Field(
            0.1,
            gt=0,
            le=1,
            description="temperature of the sharpening; 1 leaves probabilities as they are",
        )
        ramp_share: float = Field(
            1.0,
            gt=0,
            le=1,
            description="share of the run after which the weight is full (code: 0.4)",
        )

    needs = frozenset({"decoders", "features"})

    def build(self, network: Callable[..., Backbone]) -> None:
        self.network = network(decoders=DECODERS[: self.p.decoders])

    def loss(self, batch: Batch, t: Clock) -> dict[str, Tensor]:
        images = torch.cat([batch.x, batch.u])
        logits = [widened(z) for z in self.network(images)]  # of each decoder (L + U, K, *S)
        p = [z.softmax(1) for z in logits]
        sharp = [sharpened(z, self.p.temperature) for z in logits]

        labeled = [q[: len(batch.x)] for q in p]
        supervised = sum(dice(q, batch.y, squared=False, smooth=1e-8) for q in labeled)
        stair = (t.step + 1) * 40 // (self.p.ramp_share * t.total)
        return {
            "supervised": self.p.supervised_weight * supervised,
            "consistency": self.p.weight * sigmoid_ramp(stair, 40) * mutual_consistency(p, sharp),
        }

    def predict(self, image: Tensor, source: int = 0) -> Tensor:
        features = self.network.decode(self.network.encode(image), 0)[0]
        return self.network.head(features, 0).softmax(1)


def widened(logits: Tensor) -> Tensor:
    """``logits`` in float32 at least: division by the temperature would amplify the rounding of half precision."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def sharpened(logits: Tensor, temperature: float) -> Tensor:
    """p^(1/T) / sum_k p_k^(1/T) of the softmax p of (N, K, *S)."""
    return (logits / temperature).softmax(1)


def mutual_consistency(p: Sequence[Tensor], sharp: Sequence[Tensor]) -> Tensor:
    """Squared errors between each decoder's probabilities and the sharpened ones of every other, summed over pairs."""
    pairs = permutations(range(len(p)), 2)
    return torch.stack([squared_error(p[i], sharp[j]) for i, j in pairs]).sum()
