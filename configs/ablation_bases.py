"""What the ablations start from: every key of one, the runs' base at each scale, and the suites that measure them."""

from ml_collections import ConfigDict

from configs import clip_vit_b32, tiny

MINI_SETS = ("scenes/compositions", "scenes/held_out")
FULL_SETS = ("tfds/imagenet2012/validation",)


def get_config(scale: str = "mini") -> ConfigDict:
    """An ablation that asks nothing yet; its files change what they need."""
    config = ConfigDict()

    config.about = ConfigDict()
    config.about.question = ""
    config.about.place = ""  # figure, table or section, and of which paper
    config.about.finding = ""  # of the paper
    config.about.note = ""  # what is otherwise here

    config.measure = ConfigDict()
    config.measure.kind = "final"  # the last evaluation of a run; "curve": all; "suite": config.suite
    config.measure.sets = ()  # labelled sets that count; () for all there are

    config.figure = ConfigDict()
    config.figure.kind = "arms"  # "lines", "scatter" or "bars"
    config.figure.x = ""  # of lines: compute, samples_seen, shots, or a key of the runs' config
    config.figure.series = (("zero-shot", {"what": "zero_shot"}),)  # pairs of a label and which observations
    config.figure.minus = ConfigDict()
    config.figure.x_label = ""
    config.figure.y_label = "zero-shot accuracy"
    config.figure.log_x = False
    config.figure.log_y = False
    config.figure.error = False  # draws 1 less the value
    config.figure.unit = "percent"  # "points" or "number"
    config.figure.chance = 0.0

    config.paper = ConfigDict()  # its points in the form of our figure
    config.paper.series = ()  # pairs of a label and ((x, y), ...)
    config.paper.x_label = ""
    config.paper.y_label = ""
    config.paper.source = ""

    config.findings = ()
    config.base = mini() if scale == "mini" else full()
    config.suite = ConfigDict()
    return config


def finding(
    words: str,
    statistic: str,
    a: dict,
    b: dict | None = None,
    low: float = 0.0,
    high: float = float("inf"),
    unit: str = "points",
    x: str = "",
) -> dict:
    """A number a seed, and the range in which the paper's finding holds; see clip_jax/ablations/findings.py."""
    return {
        "words": words,
        "statistic": statistic,
        "a": a,
        "b": b or {},
        "low": low,
        "high": high,
        "unit": unit,
        "x": x,
    }


def mini() -> ConfigDict:
    """The tiny run, half as long: accuracies between chance and the top, where differences show."""
    config = tiny.get_config()
    config.optimizer.warmup_steps = 60
    config.train.total_steps = 1000
    config.train.checkpoint_every = 500
    config.train.evaluate_every = 0  # only at the end
    config.train.keep_checkpoints = 1
    return config


def full() -> ConfigDict:
    """The paper's ViT-B/32 on data of your own, --config.data.path, measured on ImageNet."""
    config = clip_vit_b32.get_config()
    config.evaluation.zero_shot = FULL_SETS
    config.evaluation.templates = "imagenet80"
    config.evaluation.data_dir = "data"
    return config


def sets(scale: str) -> tuple[str, ...]:
    """The labelled sets that training measures."""
    return MINI_SETS if scale == "mini" else FULL_SETS


def same(config: ConfigDict) -> ConfigDict:
    """The base as it is."""
    return config
