"""Fitting: the loop, its optimiser, density control and checkpoints."""
