"""Runs of a method from files to files."""
