"""A SLURM cluster on this machine, for the tests that need one."""

import pytest
import slurm_cluster


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Return a running cluster; the test is skipped where SLURM cannot run."""
    why_not = slurm_cluster.missing()
    if why_not:
        pytest.skip(why_not)
    cluster = slurm_cluster.SlurmCluster(tmp_path_factory.mktemp("slurm"))
    yield cluster
    cluster.close()
