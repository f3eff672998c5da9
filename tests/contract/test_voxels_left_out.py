"""Voxels to leave out reach no loss of any method, whatever the image or the label holds there.

The network here is pointwise: its output at a voxel depends on that voxel alone. So a term that
uses labels, and leaves voxels out, does not notice when the image changes there.
"""

import pytest
import torch
from torch import nn

from segbench import Backbone, Batch, Clock, registry
from segbench.contracts.dataset import IGNORED
from segbench.contracts.method import Setting, Source

METHODS = registry.names("method")
# Terms that use no label: they see voxels to leave out as they see an unlabeled image. A term of
# VerSemi is among them unless the pasted labels are part of its target.
LABEL_FREE = {
    "adversarial",
    "consistency",
    "critic",
    "cross_1",
    "cross_2",
    "features",
    "plain",
    "pseudo",
    "smoothness",
    "strong",
    "strong_1",
    "strong_2",
    "uncl",
    "unlabeled",
}
PARAMS = {
    "versemi": [
        {"condition": "prompt"},
        {"condition": "prompt", "dice_by": "prompt", "aux_mask": "pairs"},
        {"condition": "prompt", "unlabeled_target": "composed"},
        {"condition": "prompt", "recipe": "one_gpu", "unlabeled_target": "composed"},
    ],
    "ua_mt": [{}, {"images": "all"}],
    "bcp": [{}, {"box": 0.5}],
    "mc_net": [{"decoders": 2}, {}],
}
CASES = [(name, params) for name in METHODS for params in PARAMS.get(name, [{}])]


class Pointwise(Backbone):
    """Layers of one voxel, without normalization."""

    width = 4
    channels = (4,)

    def __init__(self, dims, heads, decoders=("transposed",), side_outputs=False):
        nn.Module.__init__(self)
        layer = nn.Conv3d if dims == 3 else nn.Conv2d
        self.first = layer(1, 4, 1)
        outputs = len(decoders) * (2 if side_outputs else 1)
        self.heads = nn.ModuleList(layer(4, classes, 1) for classes in heads * outputs)

    def encode(self, image):
        return [self.first(image).tanh()]

    def decode(self, pyramid, decoder=0):
        return list(pyramid)

    def head(self, features, head=0):
        return self.heads[head](features)

    def forward(self, image):
        (features,) = self.encode(image)
        outputs = tuple(head(features) for head in self.heads)
        return outputs[0] if len(outputs) == 1 else outputs


def build(name, params, classes, dims):
    torch.manual_seed(0)
    cls = registry.get("method", name).cls
    sources = [Source("a", tuple("bcd"[: classes - 1]))]
    if cls.joint:
        sources.append(Source("e", ("f",)))
    setting = Setting(tuple(sources), 1, (12, 10, 8)[:dims])
    method = cls(cls.Params(**params), setting)

    def network(heads=(classes,), **options):
        options.pop("backbone", None)  # a second architecture may be the same here
        return Pointwise(dims, heads, **options)

    method.build(network)
    return method.eval()


def batch(method, classes, seed=0):
    """Three labeled and two unlabeled images; the labels have blocks of voxels to leave out."""
    patch = method.setting.patch
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(3, 1, *patch, generator=draw)
    u = torch.randn(2, 1, *patch, generator=draw)
    y = torch.randint(0, classes, (3, *patch), generator=draw)
    source = torch.arange(5) % len(method.setting.sources)
    y[source[:3] == 1] = y[source[:3] == 1].clamp(max=1)
    unknown = torch.rand(3, *patch, generator=draw) < 0.3
    unknown[1, 3:9] = True
    return Batch(x, torch.where(unknown, IGNORED, y), u, source), y, unknown


def terms(name, params, classes, dims, given, phase):
    """Return the loss terms, and their gradient, of a new method in its first step of a phase."""
    method = build(name, params, classes, dims)
    t = Clock(step=7, total=8, phase=phase, phase_step=3, phase_total=4)
    torch.manual_seed(1)
    found = method.loss(given, t)
    parameters = [p for p in method.parameters() if p.requires_grad]
    numbers = {}
    for term, value in found.items():
        composed = params.get("unlabeled_target") == "composed" and term == "consistency"
        if term in LABEL_FREE and not composed:
            continue
        slopes = [torch.zeros(1)]
        if value.requires_grad:
            gradient = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
            slopes += [slope.flatten() for slope in gradient if slope is not None]
        numbers[term] = torch.cat([value.detach().view(1), *slopes])
    assert numbers
    return numbers


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("name, params", CASES)
def test_terms_with_labels_do_not_see_them(name, params, dims, classes):
    method = build(name, params, classes, dims)
    given, y, unknown = batch(method, classes)
    other_x = torch.where(unknown.unsqueeze(1), 5 - given.x, given.x)
    other = Batch(other_x, given.y, given.u, given.source)
    as_background = Batch(given.x, torch.where(unknown, 0, y), given.u, given.source)
    for phase in method.phases():
        found = terms(name, params, classes, dims, given, phase.name)
        changed = terms(name, params, classes, dims, other, phase.name)
        background = terms(name, params, classes, dims, as_background, phase.name)
        for term, numbers in found.items():
            torch.testing.assert_close(changed[term], numbers, rtol=1e-4, atol=1e-6)
        assert any(not torch.allclose(background[term], found[term]) for term in found)


@pytest.mark.parametrize("name", METHODS)
def test_labels_without_known_voxels_give_finite_terms(name):
    for params in PARAMS.get(name, [{}]):
        method = build(name, params, 3, 3)
        given, y, _ = batch(method, 3)
        nothing = Batch(given.x, torch.full_like(y, IGNORED), given.u, given.source)
        for phase in method.phases():
            found = terms(name, params, 3, 3, nothing, phase.name)
            assert all(numbers.isfinite().all() for numbers in found.values())
