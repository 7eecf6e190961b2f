"""Training of the bundled tiny prior: objects without end, their pictures, the trainer."""
