"""MC-Net+: decoders with different upsampling learn from each other's sharpened predictions.

Wu, Ge, Zhang, Xu, Zhang, Xia, Cai: Mutual consistency learning for semi-supervised medical image
segmentation, MedIA 81 (2022) 102530, arXiv:2109.09960. The version with two decoders is MC-Net: Wu,
Xu, Ge, Cai, Zhang, MICCAI 2021, arXiv:2103.02911. Official code: github.com/ycwu1997/MC-Net. The
code was consulted through a written specification; nothing was copied.

Sharpening with temperature T turns a probability p into p^(1/T) / (p^(1/T) + (1-p)^(1/T)). The
consistency term sums the squared difference between the probabilities of each decoder and the
sharpened probabilities of every other decoder.

Paper                    Official code                      Here
two or three decoders    --model mcnet3d_v1, mcnet3d_v2     decoders=2, decoders=3 (the default)
two classes              p^(1/T) / (p^(1/T) + (1-p)^(1/T))  p_c^(1/T) / sum_k p_k^(1/T), the same
                                                              for two classes; computed as softmax(z
                                                              / T), which cannot underflow
pseudo labels            differentiable: nothing is         the same
                           detached
consistency              on labeled images too; a sum over  the same: two decoders give 2 pairs,
                           ordered pairs                      three give 6
-                        supervised by Dice only, summed    the same, averaged over the foreground
                           over the decoders and halved       classes
-                        cross entropy is logged, not used  left out
-                        ramp of 40 stairs of 150 steps,    40 stairs over the run, also counted
                           with steps counted from 1; 15      from 1, as in the first 6000 steps of
                           000 steps                          the code; ramp_share=0.4 reproduces
                                                              its run of 15,000 steps
-                        constant learning rate             the protocol's optimizer; -o
                                                              optim.schedule=constant gives a
                                                              constant rate
-                        foreground > 0.5 of decoder 1      class probabilities of decoder 1, the
                                                              same for two classes
-                        2-D: Dice without the factor 2,    as in 3-D; decoder 1 has transposed
                           other weights, bilinear decoder    convolutions
                           1
best test Dice           best test Dice                     the last weights
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations

import torch
from torch import Tensor

from segbench import Backbone, Batch, Clock, Field, Method, MethodParams, method
from segbench.nn.losses import dice, squared_error
from segbench.nn.ops import sharpened, widened

DECODERS = ("transposed", "trilinear", "nearest")


@method("mc_net", paper="Wu et al., MedIA 2022 (MC-Net+)")
class MCNet(Method):
    """One encoder and several decoders; the first decoder is used for prediction."""

    skips_ignored = True

    class Params(MethodParams):
        decoders: int = Field(
            3, ge=2, le=3, description="3: MC-Net+; 2: MC-Net, without the nearest-neighbor decoder"
        )
        weight: float = Field(
            1.0, ge=0, description="weight of the mutual consistency term after the ramp"
        )
        supervised_weight: float = Field(
            0.5, gt=0, description="weight of the sum of the Dice losses over the decoders"
        )
        temperature: float = Field(
            0.1,
            gt=0,
            le=1,
            description="sharpening temperature T; 1 means no sharpening",
        )
        ramp_share: float = Field(
            1.0,
            gt=0,
            le=1,
            description="fraction of the run at which the ramp ends (code: 0.4)",
        )

    needs = frozenset({"decoders", "features"})

    def build(self, network: Callable[..., Backbone]) -> None:
        decoders = DECODERS[: self.p.decoders]
        self.network = network(decoders=decoders)

    def loss(self, batch: Batch, t: Clock) -> dict[str, Tensor]:
        images = torch.cat([batch.x, batch.u])
        logits = [widened(z) for z in self.network(images)]  # (L + U, K, *S) per decoder
        p = [z.softmax(1) for z in logits]
        sharp = [sharpened(z, self.p.temperature) for z in logits]

        labeled = [q[: len(batch.x)] for q in p]
        supervised = sum(dice(q, batch.y, squared=False, smooth=1e-8) for q in labeled)
        consistency = mutual_consistency(p, sharp)
        weight = self.p.weight * t.ramp(40, share=self.p.ramp_share, first=1)
        return {
            "supervised": self.p.supervised_weight * supervised,
            "consistency": weight * consistency,
        }

    def predict(self, image: Tensor, source: int = 0) -> Tensor:
        pyramid = self.network.encode(image)
        features = self.network.decode(pyramid, 0)[0]
        return self.network.head(features, 0).softmax(1)


def mutual_consistency(p: Sequence[Tensor], sharp: Sequence[Tensor]) -> Tensor:
    """Return the squared error of p_i and sharp_j, summed over ordered pairs (i, j) of decoders."""
    errors = []
    for i, j in permutations(range(len(p)), 2):
        errors.append(squared_error(p[i], sharp[j]))
    return torch.stack(errors).sum()
