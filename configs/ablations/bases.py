"""What the ablations start from: every key of one, the runs' bases at each scale, and the suites that measure them."""

from ml_collections import ConfigDict

from configs import clip_rn50, clip_vit_b32, tiny
from configs.model_sizes import MODEL_SIZES
from configs.suites import paper

PAIR_SETS = ("scenes/compositions", "scenes/held_out")  # of shape and colour: captions name them, or never do
# What a scene of one object can be asked; the average over them differs less from seed to seed than most of them.
MINI_SETS = ("scenes/shape", "scenes/colour", "scenes/size", "scenes/texture", "scenes/position", *PAIR_SETS)
FULL_SETS = ("tfds/imagenet2012/validation",)
WORLD_SETS = (
    "scenes/shape", "scenes/colour", "scenes/size", "scenes/texture", "scenes/position", "scenes/count",
    "scenes/relation", "scenes/digit", "scenes/word", "scenes/compositions",
)  # fmt: skip
SHIFTED_SETS = ("scenes/sketch", "scenes/recoloured")
SHIFTED_IMAGENET = ("tfds/imagenet_v2/test", "tfds/imagenet_sketch/test")  # those of all 1,000 classes
DIGITS = "sklearn/digits"  # handwritten

ZERO_SHOT = {"what": "zero_shot"}
PROBE = {"what": "linear_probe"}
FEW_SHOT = {"what": "few_shot"}


def get_config(scale: str = "mini") -> ConfigDict:
    """An ablation that asks nothing yet; its files change what they need."""
    config = ConfigDict()

    config.about = ConfigDict()
    config.about.question = ""
    config.about.place = ""  # figure, table or section, and of which paper
    config.about.finding = ""  # of the paper
    config.about.note = ""  # what is otherwise here, and what is asked

    config.measure = ConfigDict()
    config.measure.kind = "final"  # the last evaluation of a run; "curve": all; "suite": config.suite
    config.measure.sets = MINI_SETS if scale == "mini" else FULL_SETS  # labelled sets that count; () for all there are

    config.figure = ConfigDict()
    config.figure.kind = "arms"  # "lines", "scatter" or "bars"
    config.figure.x = ""  # of lines: compute, samples_seen, shots, or a key of the runs' config
    config.figure.series = (("zero-shot", ZERO_SHOT),)  # pairs of a label and which observations
    config.figure.minus = ConfigDict()
    config.figure.x_label = ""
    config.figure.y_label = "zero-shot accuracy"
    config.figure.log_x = False
    config.figure.log_y = False
    config.figure.error = False  # draws 1 less the value
    config.figure.unit = "percent"  # "points" or "number"
    config.figure.chance = 0.0

    config.second = ConfigDict()  # of the same keys, another panel

    config.paper = ConfigDict()  # its points in the form of our figure
    config.paper.series = ()  # pairs of a label and ((x, y), ...)
    config.paper.x_label = ""
    config.paper.y_label = ""
    config.paper.source = ""

    config.findings = ()
    config.base = mini() if scale == "mini" else full()
    config.suite = ConfigDict()  # as of configs/suites
    return config


def world_config(scale: str, *measures: str, steps: int = 1000) -> ConfigDict:
    """An ablation of runs that see every kind of scene, measured by these of the suite's measures or by all."""
    config = get_config(scale)
    config.measure.kind, config.measure.sets = "suite", ()
    config.suite = suite(scale, *(measures or ("zero_shot", "linear_probe", "few_shot", "robustness", "overlap")))
    config.base = world(scale, steps)
    return config


def finding(words: str, statistic: str, a: dict, b: dict | None = None, **keys: float | str) -> dict:
    """A number a seed, and the range in which the paper's finding holds; see clip_jax/ablations/statistics.py. Without
    low and high it is reported only and decides nothing; nothing: what it means that there is no number."""
    defaults = {"low": float("-inf"), "high": float("inf"), "unit": "points", "x": "", "nothing": ""}
    return {"words": words, "statistic": statistic, "a": a, "b": b or {}, **defaults, **keys}


def zero_shot_difference(words: str, arm: str, other: str, **ends: float) -> dict:
    """The zero-shot accuracy of a run less that of another, as a finding."""
    return finding(words, "difference", {**ZERO_SHOT, "arm": arm}, {**ZERO_SHOT, "arm": other}, **ends)


def mini() -> ConfigDict:
    """The tiny run, half as long: accuracies between chance and the top, where differences show."""
    config = tiny.get_config()
    config.optimizer.warmup_steps = 60
    config.train.total_steps = 1000
    config.train.checkpoint_every = 500
    config.train.evaluate_every = 0  # only at the end
    config.train.keep_checkpoints = 1
    config.evaluation.zero_shot, config.evaluation.num_examples = MINI_SETS, 512
    return config


def full() -> ConfigDict:
    """The paper's ViT-B/32 on data of your own, --config.data.path, measured on ImageNet in --data_dir."""
    config = clip_vit_b32.get_config()
    config.evaluation.zero_shot = FULL_SETS
    config.evaluation.templates = "imagenet80"
    config.evaluation.data_dir = "data"
    return config


def world(scale: str, steps: int = 1000) -> ConfigDict:
    """A run that sees every kind of scene, so that there are many sets to measure it on; at full scale the paper's."""
    if scale == "full":
        return full()
    config = mini()
    config.data.scene_kinds = ()
    config.train.total_steps = steps
    config.evaluation.zero_shot = WORLD_SETS
    config.evaluation.num_examples = 512
    return config


def same(config: ConfigDict) -> ConfigDict:
    """The base as it is."""
    return config


def one_run(scale: str) -> dict:
    """The arms of an ablation that asks about one model."""
    return {"world": same}


def changed(**changes: object):
    """A run: section__key=value."""

    def change(config: ConfigDict) -> ConfigDict:
        for key, value in changes.items():
            section, _, name = key.partition("__")
            config[section][name] = value
        return config

    return change


SIZES = {"XS": (24, 2), "S": (48, 2), "M": (64, 4), "L": (96, 4), "XL": (128, 6)}  # width; blocks of the image tower


def sized(width: int, depth: int):
    """A run with towers of another size; the larger the model, the lower its learning rate, as in table 20."""

    def change(config: ConfigDict) -> ConfigDict:
        config.vision.width, config.vision.depth, config.vision.num_heads = width, depth, max(width // 16, 1)
        config.text.width, config.text.num_heads = width, max(width // 16, 1)
        config.optimizer.learning_rate *= (64 / width) ** 0.5
        return config

    return change


RESNETS = {"RN50": 5e-4, "RN101": 5e-4, "RN50x4": 5e-4, "RN50x16": 4e-4, "RN50x64": 3.6e-4}  # learning rates, table 19


def published(name: str):
    """The base with one of the paper's ResNets; all else of it stays."""
    sizes = MODEL_SIZES[name]

    def change(config: ConfigDict) -> ConfigDict:
        resnet = clip_rn50.get_config()
        config.vision = resnet.vision
        config.vision.update(sizes["vision"])
        config.model.embed_dim = sizes["model"]["embed_dim"]
        config.text.width, config.text.num_heads = sizes["text"]["width"], sizes["text"]["num_heads"]
        config.optimizer.learning_rate = RESNETS[name]
        config.optimizer.b2, config.optimizer.eps = resnet.optimizer.b2, resnet.optimizer.eps
        return config

    return change


def sizes(scale: str) -> dict:
    """Runs of five sizes: ViTs over 50 times the FLOPs, at full scale the paper's ResNets over 30."""
    if scale == "full":
        return {name: published(name) for name in RESNETS}
    return {name: sized(*size) for name, size in SIZES.items()}


def suite(scale: str, *measures: str) -> ConfigDict:
    """What measures a run: the drawn world's sets, two shifts and handwritten digits, or the paper's sets."""
    config = paper.get_config()
    config.suite.measures = measures
    config.robustness.adapt = "robustness" in measures
    if scale == "full":
        config.robustness.reference, config.robustness.shifts = "imagenet", SHIFTED_IMAGENET
        config.suite.datasets += SHIFTED_IMAGENET if "robustness" in measures else ()
        config.overlap.num_training = 1_000_000  # of 400 million; their embeddings are 760 MB
        return config
    config.suite.name = "The drawn world"
    config.suite.datasets = (*WORLD_SETS, *SHIFTED_SETS, DIGITS)
    config.suite.num_examples = 512
    config.zero_shot.num_mistakes = 0
    config.few_shot.num_seeds = 2
    config.robustness.reference, config.robustness.shifts = "scenes/shape", SHIFTED_SETS
    config.overlap.num_training = 5_000
    return config
