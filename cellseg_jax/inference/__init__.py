"""Prediction and evaluation with trained runs."""
