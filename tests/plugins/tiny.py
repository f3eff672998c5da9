"""Data sets of balls in noise, so small that a method trains on them in a blink. For tests only."""

import numpy as np

from segbench import Case, Dataset, RawCase, Split, dataset


class Balls(Dataset):
    title = "Balls in noise"
    modality = "none"
    classes = ("ball",)
    license = "none needed"
    labeled = 2
    embedded = True
    side = 20

    def split(self):
        ids = [f"case{i}" for i in range(8)]
        return Split(tuple(ids[:6]), tuple(ids[6:]), "made up")

    def find(self, source):
        return [RawCase(f"case{i}", i) for i in range(8)]

    def load(self, raw):
        draw = np.random.Generator(np.random.PCG64(raw.where))
        grid = np.stack(np.meshgrid(*[np.arange(self.side)] * self.dims, indexing="ij"))
        label = np.zeros(grid.shape[1:], np.uint8)
        for value in range(1, len(self.classes) + 1):
            center = draw.uniform(6, self.side - 6, size=(self.dims, *[1] * self.dims))
            label[((grid - center) ** 2).sum(0) < 30] = value
        image = label + draw.normal(0, 0.5, size=(self.channels, *label.shape))
        return Case(raw.id, image.astype(np.float32), label, (1.0,) * self.dims)


@dataset("tiny")
class Tiny(Balls):
    """One class in three dimensions."""


@dataset("tiny_classes")
class TinyClasses(Balls):
    """Three classes, two channels."""

    classes = ("small", "smaller", "smallest")
    channels = 2


@dataset("tiny_flat")
class TinyFlat(Balls):
    """One class in two dimensions."""

    dims = 2


@dataset("tiny_bare")
class TinyBare(Balls):
    """Files that tell no spacing."""

    def load(self, raw):
        case = super().load(raw)
        return Case(case.id, case.image, case.label)


@dataset("tiny_slice")
class TinySlice(Balls):
    """Volumes of one slice, whose third spacing is that of no neighbor."""

    def load(self, raw):
        flat = TinyFlat().load(raw)
        return Case(raw.id, flat.image[..., None], flat.label[..., None], (0.5, 0.5, 7.0))


@dataset("tiny_skewed")
class TinySkewed(Balls):
    """Volumes whose axes are not perpendicular."""

    steps = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.8], [0.0, 0.0, 1.0]])

    def load(self, raw):
        case = super().load(raw)
        affine = np.eye(4)
        affine[:3, :3] = self.steps
        spacing = tuple(np.linalg.norm(self.steps, axis=0).tolist())
        return Case(case.id, case.image, case.label, spacing, affine)
