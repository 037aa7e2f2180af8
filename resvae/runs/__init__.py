"""A run's folder: its configuration, checkpoints, summary and lock, and the data it was trained on."""
