"""Earlier name of ``segbench.nn.losses``, kept for plug-ins that import it."""

from segbench.nn.losses import cross_entropy as cross_entropy
from segbench.nn.losses import dice as dice
from segbench.nn.losses import dice_ce as dice_ce
from segbench.nn.losses import known_mean as known_mean
from segbench.nn.losses import masked_mean as masked_mean
from segbench.nn.losses import soft_dice as soft_dice
from segbench.nn.losses import squared_error as squared_error
