"""Which modules of the engine decide numbers, and which cannot change one.

Every module of ``segbench`` is in exactly one of the three lists; a test fails when a new module is
in none. A name that ends in ``.*`` stands for a package and everything in it.
"""

from __future__ import annotations

# Code that plug-ins are written in. What a plug-in uses of it, directly or through others, is part
# of the digest of the plug-in's source. Readers and preparation decide the voxels, whose digests
# are part of the identity as well.
PLUGIN_VOCABULARY = (
    "segbench.contracts.*",
    "segbench.data",
    "segbench.data.formats.*",
    "segbench.data.geometry",
    "segbench.data.preparation.*",
    "segbench.losses",
    "segbench.metrics.*",
    "segbench.nn.*",
)

# Code that runs the same way for every plug-in. ENGINE stands for it in the identity of a run.
ENGINE_MODULES = (
    "segbench.data.sampling.*",
    "segbench.data.store.downsample",
    "segbench.evaluation.case_rows",
    "segbench.evaluation.precision",
    "segbench.evaluation.prediction",
    "segbench.evaluation.sliding_window",
    "segbench.evaluation.test_set",
    "segbench.training.build",
    "segbench.training.distributed",
    "segbench.training.gradients",
    "segbench.training.loop",
    "segbench.training.optimizers",
    "segbench.training.placement",
    "segbench.training.plan",
    "segbench.training.selection",
    "segbench.training.step",
)

# Code that reads settings, finds files, keeps state, writes results or shows them. Settings are
# part of every identity.
CANNOT_CHANGE_NUMBERS = (
    "segbench",
    "segbench.api.*",
    "segbench.cli.*",
    "segbench.config.*",
    "segbench.conformance.*",
    "segbench.data.links",
    "segbench.data.look_alike",
    "segbench.data.open",
    "segbench.data.store",
    "segbench.data.store.case_files",
    "segbench.data.store.checks",
    "segbench.data.store.copies",
    "segbench.data.store.intact_once",
    "segbench.data.store.problem",
    "segbench.data.store.similar_names",
    "segbench.data.store.store",
    "segbench.data.store.warning_groups",
    "segbench.errors",
    "segbench.evaluation",
    "segbench.evaluation.checks",
    "segbench.evaluation.label_folders",
    "segbench.evaluation.label_values",
    "segbench.evaluation.new_scans",
    "segbench.evaluation.scan_files",
    "segbench.evaluation.turned",
    "segbench.identity.*",
    "segbench.lease_lock",
    "segbench.mounts",
    "segbench.progress",
    "segbench.registry",
    "segbench.report.*",
    "segbench.results.*",
    "segbench.storage",
    "segbench.suites.*",
    "segbench.text",
    "segbench.tracking.*",
    "segbench.training",
    "segbench.training.announce",
    "segbench.training.checkpoint",
    "segbench.training.cost",
    "segbench.training.leak",
    "segbench.training.lease",
    "segbench.training.loss_checks",
    "segbench.training.memory",
    "segbench.training.model_file",
    "segbench.training.planned",
    "segbench.training.reload",
    "segbench.training.reporter",
    "segbench.training.result",
    "segbench.training.run",
    "segbench.training.setup",
    "segbench.training.signals",
    "segbench.training.stored",
    "segbench.training.tracked",
    "segbench.training.watch",
    "segbench.verify.*",
)


def matches(module: str, patterns: tuple[str, ...]) -> bool:
    """Return whether a dotted module name is in a list of patterns."""
    for pattern in patterns:
        package = pattern.removesuffix(".*")
        if module == package:
            return True
        if pattern.endswith(".*") and module.startswith(f"{package}."):
            return True
    return False
