"""Checks of the data, for the doctor and for the start of training."""
