"""What the pages of the documentation take for granted in a user's folder."""

import numpy as np
import small_folders as small

SUITE = """\
schema: 1
name: mine
matrix: {method: [supervised, mean_teacher], dataset: [phantom2d_a]}
overrides: {steps: 10}
"""
CLUSTER = "schema: 1\ntime: '24:00:00'\ngpus: 1\nslurm: {partition: gpu}\n"


def fill(home):
    """Write a data set, a folder of repeated visits, scans with references, and suite files."""
    small.OwnFolder(home / "Dataset007_Mine").fill()
    visits = small.OwnFolder(home / "visits")
    for seed, name in enumerate(["patient1_a", "patient1_b", "patient2_a", "patient3_a"]):
        visits.case(name, 10 + seed)
    for seed, name in enumerate(["scan", "series/other"], 20):
        image, label = small.scan(seed)
        small.save(home / f"{name}.nii.gz", image, np.diag([1, 1, 1.5, 1]))
        reference = home / "truth" / f"{name.rpartition('/')[2]}.nii.gz"
        small.save(reference, label, np.diag([1, 1, 1.5, 1]))
    (home / "mine.yaml").write_text(SUITE)
    (home / "cluster.yaml").write_text(CLUSTER)
