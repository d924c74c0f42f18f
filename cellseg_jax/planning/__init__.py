"""Cost of a run before it is spent: FLOPs, memory, fit."""
