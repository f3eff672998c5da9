"""Settings for every test: one torch thread a process, as two processes share two cores."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before anything imports torch
os.environ.setdefault("MKL_NUM_THREADS", "1")
