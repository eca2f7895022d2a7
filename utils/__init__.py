"""Modules of the validator; only the scripts in the top folder combine them."""

import os

# Waiting OpenMP threads should sleep: on few cores, spinning threads take the cores from the data loading processes.
# OpenMP reads the variable when PyTorch loads OpenMP, so it is set here, before torch is imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
