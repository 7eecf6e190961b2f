"""Objectives: one file each. A fit minimises their sum."""
