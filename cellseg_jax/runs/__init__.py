"""The folder of a run: layout, lock, checkpoints, provenance, page."""
