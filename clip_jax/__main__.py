"""`python -m clip_jax COMMAND` is `clip-jax COMMAND`."""

from clip_jax.cli.command import main

main()
