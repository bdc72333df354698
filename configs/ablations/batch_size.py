"""Batches of three sizes over the same number of pairs.

clip-jax ablate batch_size --workdir=runs/ablations
"""

from ml_collections import ConfigDict

from configs import ablation_bases
from configs.ablation_bases import finding, same

SETS = {"what": "zero_shot"}


def get_config(scale: str = "mini") -> ConfigDict:
    config = ablation_bases.get_config(scale)
    config.about.question = "Does a larger batch learn more from the same pairs?"
    config.about.place = "sec. 2.5 and table 18"
    config.about.finding = 'a "very large minibatch size of 32,768"; the paper shows no smaller one.'
    config.about.note = (
        "All runs see the same pairs in the same order. The learning rate grows with the square root of the batch, so "
        "that Adam's steps sum to the same length of a random walk; a smaller batch takes more of them."
    )
    config.measure.sets = ablation_bases.sets(scale)
    config.figure.kind = "lines"
    config.figure.x = "train.global_batch_size"
    config.figure.x_label = "pairs a batch"
    config.figure.log_x = True
    largest = 512 if scale == "mini" else 32_768
    config.base.train.total_steps = config.base.train.total_steps * config.base.train.global_batch_size // largest
    config.base.train.global_batch_size = largest
    config.base.optimizer.learning_rate = config.base.optimizer.learning_rate * (2 if scale == "mini" else 1)
    config.base.optimizer.warmup_steps = 20 if scale == "mini" else config.base.optimizer.warmup_steps
    config.findings = (
        finding(
            "the largest batch less a sixteenth of it:", "difference", {**SETS, "arm": "all"}, {**SETS, "arm": "1/16"}
        ),
    )
    return config


def arms(scale: str) -> dict:
    return {"1/16": lambda config: smaller(config, 16), "1/4": lambda config: smaller(config, 4), "all": same}


def smaller(config: ConfigDict, times: int) -> ConfigDict:
    config.train.global_batch_size //= times
    config.train.total_steps *= times
    config.train.checkpoint_every *= times
    config.optimizer.warmup_steps *= times
    config.optimizer.learning_rate /= times**0.5
    return config
