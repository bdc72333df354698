"""A sweep of runs that answers one question of the paper, its figure and its one sentence; see `clip-jax ablate`."""
