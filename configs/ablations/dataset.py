"""Two sources of the same size: clip-jax ablate dataset --workdir=runs/ablations"""

from ml_collections import ConfigDict

from configs.ablations import bases
from configs.ablations.bases import PROBE, ZERO_SHOT, finding

KINDS = {"first": ("object", "count", "digit"), "second": ("object", "pair", "word")}
MEASURES = {"zero-shot": ZERO_SHOT, "linear probe": PROBE}


def get_config(scale: str = "mini") -> ConfigDict:
    config = bases.world_config(scale, "zero_shot", "linear_probe", steps=1000)
    config.about.question = "How much does the source of the pairs matter at the same size?"
    config.about.place = "table 12 (appendix D)"
    config.about.finding = (
        "a subset of YFCC100M and an equally large part of WIT give about the same average, but single sets differ "
        "by ten points and more, as the one or the other has more pairs that matter to them."
    )
    sources = (
        "50,000 scenes of objects, counts and digits against as many of objects, pairs and words"
        if scale == "mini"
        else "the folders that --config.data.path='DIR/{source}' names, DIR/first and DIR/second"
    )
    config.about.note = (
        f"The sources: {sources}. Asked: averages within five points, the largest difference of a set beyond ten, "
        "both zero-shot and by linear probe."
    )
    config.figure.kind, config.figure.unit, config.figure.y_label = "bars", "points", ""
    config.figure.x_label = "first source less second, accuracy"
    config.figure.series = tuple((name, {**measure, "arm": "first"}) for name, measure in MEASURES.items())
    config.figure.minus = {"arm": "second"}
    findings = []
    for name, measure in MEASURES.items():
        sides = [{**measure, "arm": arm} for arm in KINDS]
        findings += [
            finding(f"{name}, average, first less second:", "difference", *sides, low=-0.05, high=0.05),
            finding(f"{name}, largest difference of a set:", "largest_difference", *sides, low=0.1),
        ]
    config.findings = tuple(findings)
    return config


def arms(scale: str) -> dict:
    """A run of each source, all else alike."""

    def source(name: str):
        def change(config: ConfigDict) -> ConfigDict:
            if scale == "mini":
                config.data.scene_kinds, config.data.num_examples = KINDS[name], 50_000
            elif "{source}" not in config.data.path:
                raise ValueError(
                    f"--scale=full of dataset compares two sources, and data.path={config.data.path!r} names one: give "
                    "--config.data.path='DIR/{source}', with folders DIR/first and DIR/second"
                )
            config.data.path = config.data.path.replace("{source}", name)
            return config

        return change

    return {name: source(name) for name in KINDS}
