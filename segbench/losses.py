"""Earlier name of ``segbench.nn.losses``, kept for plug-ins that import it."""

from segbench.nn.losses import *  # noqa: F403
