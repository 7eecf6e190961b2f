"""Scenes of moving Gaussians: what they hold, how they are edited, filmed and given a surface."""
