"""Batches of three sizes over the same pairs: clip-jax ablate batch_size --workdir=runs/ablations"""

from ml_collections import ConfigDict

from configs.ablations import bases
from configs.ablations.bases import ZERO_SHOT, finding, same


def get_config(scale: str = "mini") -> ConfigDict:
    config = bases.get_config(scale)
    config.about.question = "Does a larger batch learn more from the same pairs?"
    config.about.place = "sec. 2.5 and table 18"
    config.about.finding = 'a "very large minibatch size of 32,768"; the paper shows no smaller one.'
    config.about.note = (
        "All runs see the same pairs in the same order. The learning rate falls with the square root of the batch; a "
        "smaller batch takes more steps."
    )
    config.figure.kind, config.figure.x, config.figure.log_x = "lines", "train.global_batch_size", True
    config.figure.x_label = "pairs a batch"
    if scale == "mini":
        config.base.train.global_batch_size = 512
        config.base.train.total_steps, config.base.train.checkpoint_every = 250, 125
        config.base.optimizer.warmup_steps = 15
        config.base.optimizer.learning_rate *= 2
    largest, least = ({**ZERO_SHOT, "arm": arm} for arm in ("all", "a sixteenth"))
    config.findings = (finding("the largest batch less a sixteenth of it:", "difference", largest, least, low=0),)
    return config


def arms(scale: str) -> dict:
    return {"a sixteenth": smaller(16), "a quarter": smaller(4), "all": same}


def smaller(times: int):
    """A run of batches that many times smaller, and as many times more steps."""

    def change(config: ConfigDict) -> ConfigDict:
        config.train.global_batch_size //= times
        config.train.total_steps *= times
        config.train.checkpoint_every *= times
        config.train.evaluate_every *= times
        config.optimizer.warmup_steps *= times
        config.optimizer.learning_rate /= times**0.5
        return config

    return change
