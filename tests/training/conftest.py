"""Training in tests: small networks beside the method's own, too."""

from functools import partial

import pytest
from segbench.methods import sassnet
from torch import nn


class NarrowCritic(sassnet.Critic):
    """SASSNet's critic with 4 to 32 channels instead of 64 to 512."""

    def __init__(self, maps, channels, dims):
        super().__init__(maps, channels, dims)
        kind = nn.Conv3d if dims == 3 else nn.Conv2d
        conv = partial(kind, kernel_size=4, stride=2, padding=1)
        self.conv0 = conv(maps, 4)
        self.conv1 = conv(channels, 4)
        self.conv2 = conv(4, 8)
        self.conv3 = conv(8, 16)
        self.conv4 = conv(16, 32)
        self.classifier = nn.Linear(32, 2)


@pytest.fixture(autouse=True)
def narrow_critic(monkeypatch):
    """The critic has 11 million weights, which tests of stops would save again and again."""
    monkeypatch.setattr(sassnet, "Critic", NarrowCritic)
