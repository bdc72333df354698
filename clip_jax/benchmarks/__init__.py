"""What `clip-jax bench` measures; its flags are in `clip_jax/cli/bench`."""
