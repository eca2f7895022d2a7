"""Library code for training students on distilled images with soft labels, and for making these soft labels.

The programs train_FKD_parallel.py, train_KD_parallel.py and relabel_FKD.py in the top folder use this package.
"""

import os

# Let idle OpenMP threads sleep. By default, they first wait in a busy loop, which slows down the data-loading processes
# on a machine with few cores. OpenMP reads this variable when PyTorch loads OpenMP: set it before importing torch.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
