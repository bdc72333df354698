"""Zero-shot beside linear probes, set by set: clip-jax ablate zero_vs_linear --workdir=runs/ablations"""

from ml_collections import ConfigDict

from configs.ablations import bases
from configs.ablations.bases import PROBE, ZERO_SHOT, changed, finding, same


def get_config(scale: str = "mini") -> ConfigDict:
    config = bases.world_config(scale)
    config.about.question = "How does zero-shot compare with a linear probe, set by set?"
    config.about.place = "figs. 5 and 8"
    config.about.finding = (
        "zero-shot beats a probe of a supervised ResNet-50's features on 16 of 27 sets (59 %); it is mostly 10 to 25 "
        "points below a probe of its own features, with a correlation of 0.82."
    )
    config.about.note = (
        "In place of the supervised ResNet-50 stands the same model trained on single objects alone, as that one is on "
        "photographs of objects (at full scale a CLIP ResNet-50 of the same data). Asked: zero-shot above its probe on "
        "more than half of the sets; below the probe of its own features on average, and correlated with it."
    )
    own, probe = {**ZERO_SHOT, "arm": "world"}, {**PROBE, "arm": "world"}
    rival = {**PROBE, "arm": "objects" if scale == "mini" else "ResNet-50"}
    config.figure.kind = "scatter"
    config.figure.series = (("linear probe", probe), ("zero-shot", own))
    config.figure.x_label, config.figure.y_label = "linear probe of the same features", "zero-shot"
    config.second = config.figure.copy_and_resolve_references()
    config.second.kind, config.second.unit, config.second.minus = "bars", "points", ConfigDict(rival)
    config.second.series = (("zero-shot less the rival's probe", own),)
    config.second.x_label, config.second.y_label = "zero-shot less the rival's probe, accuracy", ""
    config.findings = (
        finding("share of sets above the rival's probe:", "share_above", own, rival, low=0.5, unit="percent"),
        finding("zero-shot less the probe of its own features:", "difference", own, probe, high=0),
        finding("correlation with that", "correlation", own, probe, low=0, unit="number"),
    )
    return config


def arms(scale: str) -> dict:
    if scale == "mini":
        return {"world": same, "objects": changed(data__scene_kinds=("object",))}
    return {"world": same, "ResNet-50": bases.published("RN50")}
