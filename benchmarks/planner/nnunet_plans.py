"""Ask nnU-Net's own planner for its plans on the fingerprints of ``planning.py``.

    pip install nnunetv2                      # in an environment of its own, beside segbench
    python benchmarks/planner/nnunet_plans.py benchmarks/results/nnunet-plans.json

Nothing else of segbench needs the package. Axes are turned: nnU-Net's first one, across slices, is
the last one here.
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from segbench.benchmarks.planner.planning import FINGERPRINTS

from segbench.config.planning import DataFacts

MEMORY = 8  # GB, nnU-Net's default
# What nnU-Net's constructor sets besides what it reads from files.
SETTINGS = {
    "UNet_base_num_features": 32,
    "UNet_reference_val_3d": 560_000_000,
    "UNet_reference_val_2d": 85_000_000,
    "UNet_reference_com_nfeatures": 32,
    "UNet_reference_val_corresp_GB": 8,
    "UNet_reference_val_corresp_bs_2d": 12,
    "UNet_reference_val_corresp_bs_3d": 2,
    "UNet_featuremap_min_edge_length": 4,
    "UNet_blocks_per_stage_encoder": (2,) * 14,
    "UNet_blocks_per_stage_decoder": (2,) * 13,
    "UNet_min_batch_size": 2,
    "UNet_max_features_2d": 512,
    "UNet_max_features_3d": 320,
    "max_dataset_covered": 0.05,
    "UNet_vram_target_GB": MEMORY,
    "preprocessor_name": "DefaultPreprocessor",
}


def planner(facts: DataFacts) -> Any:
    """Return nnU-Net's planner with a fingerprint that is read from no file."""
    from dynamic_network_architectures.architectures.unet import PlainConvUNet
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import (
        ExperimentPlanner,
    )

    made = ExperimentPlanner.__new__(ExperimentPlanner)
    vars(made).update(SETTINGS, UNet_class=PlainConvUNet)
    made.dataset_json = {
        "channel_names": {str(channel): "MRI" for channel in range(facts.channels)},
        "labels": {str(value): value for value in range(facts.classes)},
    }
    made.dataset_fingerprint = {"median_relative_size_after_cropping": 1.0}
    return made


def plan(facts: DataFacts, axes: int) -> dict[str, Any]:
    """Return nnU-Net's patch, batch and poolings for two or three axes."""
    spacing = np.array(facts.known_spacing[:axes][::-1])
    shape = np.array(facts.shape[:axes][::-1])
    voxels = float(np.prod(facts.shape)) * facts.cases
    found = planner(facts).get_plans_for_configuration(spacing, shape, "", voxels, {})
    strides = found["architecture"]["arch_kwargs"]["strides"]
    pooled = [sum(stride[axis] == 2 for stride in strides) for axis in range(axes)]
    return {
        "data": facts.name,
        "configuration": "2d" if axes == 2 else "3d_fullres",
        "patch": [int(edge) for edge in found["patch_size"]][::-1],
        "batch": int(found["batch_size"]),
        "poolings": pooled[::-1],
    }


def main() -> None:
    """Read the command line and write the file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    plans = [plan(facts, axes) for facts in FINGERPRINTS for axes in (3, 2)]
    lines = ",\n".join(json.dumps(found) for found in plans)
    package = json.dumps(f"nnunetv2 {version('nnunetv2')}")
    arguments.out.write_text(f'{{"package": {package}, "plans": [\n{lines}\n]}}\n')


if __name__ == "__main__":
    main()
