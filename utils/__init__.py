"""The parts of the validator. Only the scripts in the top folder wire them together."""

import os

# Compute threads that wait should sleep, not spin: on few cores, spinning takes them from the data
# loading processes. OpenMP reads this when PyTorch loads it, hence here, before any import of torch.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
