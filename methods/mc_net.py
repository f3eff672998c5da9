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
-                        2-D (train_mcnet_2d.py): decoder   code=2d, as in protocol acdc_mcnet
                           1 is bilinear; each class is
                           sharpened on its own; Dice of
                           all classes with squared
                           denominators and no factor 2
-                        2-D: weight 0.1, 200 stairs of     weight=0.1, stairs=200
                           150 steps in 30,000
best test Dice           best test Dice                     the last weights
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import permutations
from typing import Any, Literal

import torch
from torch import Tensor

from segbench import Backbone, Batch, Clock, Field, Method, MethodParams, method
from segbench.nn.losses import dice, squared_error
from segbench.nn.ops import sharpened, widened

# The authors' scripts for volumes and for slices differ in the order of the decoders, of which the
# first one predicts, and in the Dice loss.
DECODERS = {
    "3d": ("transposed", "trilinear", "nearest"),
    "2d": ("trilinear", "transposed", "nearest"),
}
OVERLAP: dict[str, dict[str, Any]] = {
    "3d": {"squared": False, "smooth": 1e-8},
    "2d": {"squared": True, "smooth": 1e-10, "background": True},
}


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
            description="length of the ramp, in runs; above 1, the run ends before it (code: 0.4)",
        )
        stairs: int = Field(40, ge=1, description="number of steps of the ramp (2-D code: 200)")
        code: Literal["3d", "2d"] = Field(
            "3d",
            description="authors' script: for volumes, or for slices, with another Dice loss, "
            "another sharpening of three or more classes and the bilinear decoder first",
        )

    needs = frozenset({"decoders", "features"})

    def build(self, network: Callable[..., Backbone]) -> None:
        decoders = DECODERS[self.p.code]
        self.network = network(decoders=decoders[: self.p.decoders])

    def loss(self, batch: Batch, t: Clock) -> dict[str, Tensor]:
        images = torch.cat([batch.x, batch.u])
        logits = [widened(z) for z in self.network(images)]  # (L + U, K, *S) per decoder
        p = [z.softmax(1) for z in logits]
        if self.p.code == "2d":
            sharp = [sharpened_each(q, self.p.temperature) for q in p]
        else:
            sharp = [sharpened(z, self.p.temperature) for z in logits]

        labeled = [q[: len(batch.x)] for q in p]
        overlap = OVERLAP[self.p.code]
        dice_losses = [dice(q, batch.y, **overlap) for q in labeled]
        if self.p.code == "2d":  # no factor 2 in the overlap: 1 - I / U = (1 + Dice loss) / 2
            dice_losses = [1 + loss for loss in dice_losses]
        supervised = torch.stack(dice_losses).sum()
        consistency = mutual_consistency(p, sharp)
        weight = self.p.weight * t.ramp(self.p.stairs, share=self.p.ramp_share, first=1)
        return {
            "supervised": self.p.supervised_weight * supervised,
            "consistency": weight * consistency,
        }

    def predict(self, image: Tensor, source: int = 0) -> Tensor:
        pyramid = self.network.encode(image)
        features = self.network.decode(pyramid, 0)[0]
        return self.network.head(features, 0).softmax(1)


def sharpened_each(p: Tensor, temperature: float) -> Tensor:
    """Return p^(1/T) / (p^(1/T) + (1 - p)^(1/T)) for probabilities of any shape."""
    # The bound keeps the gradient finite; it changes no value for the temperatures in use.
    odds = p.logit(eps=1e-6)  # log(p / (1 - p))
    return (odds / temperature).sigmoid()


def mutual_consistency(p: Sequence[Tensor], sharp: Sequence[Tensor]) -> Tensor:
    """Return the squared error of p_i and sharp_j, summed over ordered pairs (i, j) of decoders."""
    errors = []
    for i, j in permutations(range(len(p)), 2):
        errors.append(squared_error(p[i], sharp[j]))
    return torch.stack(errors).sum()
