"""Two small data sets for tests, with recorded orientation and spacing and gray values."""

import numpy as np

from segbench import Case, Dataset, RawCase, Split, dataset
from segbench.data.preparation.recipe import Gray, Recipe


@dataset("scans")
class Scans(Dataset):
    """Anisotropic voxels, right-anterior-superior; gray values from 0 to 1000 become 0 to 1."""

    title, classes, embedded, labeled = "Scans", ("bright", "right"), True, 2
    license = modality = "none"
    spacing = (1.0, 1.5, 3.0)
    side = (12, 10, 8)

    def split(self):
        return Split(tuple(f"s{i}" for i in range(4)), ("s4", "s5"), "made up")

    def find(self, source):
        return [RawCase(f"s{i}", i) for i in range(6)]

    def normalize(self, image):
        return image / 1000

    def load(self, raw):
        draw = np.random.Generator(np.random.PCG64(raw.where))
        image = draw.uniform(0, 1, (self.channels, *self.side)).astype(np.float32)
        label = np.zeros(self.side, np.uint8)
        label[: self.side[0] // 2] = 2
        label[image[0] > 0.7] = 1
        affine = np.diag([*self.spacing, 1.0])
        return Case(raw.id, image, label, self.spacing[: self.dims], affine)


@dataset("scans_recipe")
class ScansRecipe(Scans):
    """The same with its preparation on record."""

    def find(self, source):
        recipe = Recipe(
            spacing=self.spacing, gray=(Gray((0.0, 1000.0), "unit"),), crop="label", margin=(1, 1)
        )
        return [
            RawCase(raw.id, {"recipe": recipe, "number": raw.where}) for raw in super().find(source)
        ]

    def normalize(self, image):
        raise AssertionError("the recipe says how")

    def load(self, raw):
        return super().load(RawCase(raw.id, raw.where["number"]))


@dataset("scans_two")
class ScansTwo(Scans):
    """The same with two channels, in cubes of 2 mm."""

    channels = 2
    spacing = (2.0, 2.0, 2.0)
