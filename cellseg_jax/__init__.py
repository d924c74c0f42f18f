"""Cell segmentation in JAX: a config describes a run, a study is a table of runs."""
