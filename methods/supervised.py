"""Supervised baseline: training on the labeled cases only, the reference for all methods.

Official code: the baseline script of UA-MT, github.com/yulequan/UA-MT (unlicensed). The code was
consulted through a written specification; nothing was copied.

Paper                    Official code                      Here
not specified            the whole batch is labeled         the same
not specified            (CE + Dice) / 2, Dice of the       the same, averaged over the foreground
                           foreground                         classes
not specified            two classes                        two or more classes; dice=all as in
                                                              SSL4MIS
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from torch import Tensor

from segbench import Backbone, Batch, Clock, Field, Method, MethodParams, Phase, method
from segbench.nn.losses import dice_ce


@method("supervised", paper="baseline of Yu et al., MICCAI 2019")
class Supervised(Method):
    """One network that is trained on labeled images only."""

    skips_ignored = True
    semi_supervised = False

    class Params(MethodParams):
        dice: Literal["foreground", "all"] = Field(
            "foreground",
            description="classes of the Dice term: foreground only (LA) or all (SSL4MIS)",
        )

    def build(self, network: Callable[..., Backbone]) -> None:
        self.network = network()

    def phases(self) -> tuple[Phase, ...]:
        return (Phase(unlabeled=0),)

    def loss(self, batch: Batch, t: Clock) -> dict[str, Tensor]:
        logits = self.network(batch.x)
        background = self.p.dice == "all"
        return {"supervised": dice_ce(logits, batch.y, background=background)}

    def predict(self, image: Tensor, source: int = 0) -> Tensor:
        return self.network(image).softmax(1)
