"""Datasets: one file each, decoded once into a cache, split and ordered by pure functions."""
