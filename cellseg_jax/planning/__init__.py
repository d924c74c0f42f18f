"""The cost of a run before it starts: FLOPs, memory, whether it fits."""
