"""Search for a config: trials that are stopped where others are better, and the winner re-run."""
