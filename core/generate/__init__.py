"""Making what a method needs and the user has not: videos, meshes, Gaussians and views. Import the modules by name."""
