"""Settings of every test run."""

import os

# As the package does for its own processes, before any test imports PyTorch.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
