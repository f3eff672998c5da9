# segbench in a container, for the CPU or for CUDA.
#
#   docker build -t segbench .
#   docker build -t segbench --build-arg BASE=nvidia/cuda:12.6.3-base-ubuntu24.04 .
#   docker run --rm --gpus all -v $PWD/segbench-data:/data -v $PWD/segbench-out:/results segbench doctor
#   apptainer build segbench.sif docker-daemon://segbench:latest
#
# pip installs torch with its CUDA libraries. For a small image without them, set the build argument PIP_EXTRA_INDEX_URL to the
# address of torch's CPU builds (pytorch.org, Get started).
ARG BASE=python:3.11-slim
FROM ${BASE}

ARG PIP_EXTRA_INDEX_URL=""

# CUDA's images hold no Python.
RUN command -v python3 && python3 -m venv --help > /dev/null \
    || { apt-get update && apt-get install -y --no-install-recommends python3 python3-venv && rm -rf /var/lib/apt/lists/*; }

WORKDIR /opt/segbench
COPY pyproject.toml README.md LICENSE ./
COPY segbench segbench
COPY methods methods
COPY datasets datasets
COPY backbones backbones
COPY benchmarks benchmarks
RUN python3 -m venv venv && PIP_EXTRA_INDEX_URL="$PIP_EXTRA_INDEX_URL" venv/bin/pip install --no-cache-dir .

ENV PATH=/opt/segbench/venv/bin:$PATH \
    SEGBENCH_ROOT=/results \
    SEGBENCH_DATA_ROOT=/data
WORKDIR /results
ENTRYPOINT ["segbench"]
CMD ["--help"]
