"""Our own GPU kernels, compiled at first use by the run-time compiler that PyTorch's GPU builds bring."""
