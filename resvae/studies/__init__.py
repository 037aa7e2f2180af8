"""Experiments: one a file."""
