"""ResNets and ViTs: linear probe against compute: clip-jax ablate encoders --workdir=runs/ablations"""

from ml_collections import ConfigDict

from configs.ablations import bases
from configs.ablations.bases import PROBE, changed, finding

# GFLOPs of one pair, by open_clip's profile; zero-shot accuracy on ImageNet of the released weights.
PAPER = {
    "ViT": ((14.78, 0.632), (41.09, 0.686), (175.33, 0.753), (395.22, 0.762)),
    "ResNet": ((18.18, 0.596), (25.5, 0.622), (51.82, 0.658), (162.69, 0.705), (552.65, 0.736)),
}
RESNETS = {"S": (6, 1), "M": (8, 1), "L": (10, 1)}  # channels of the stem, blocks a stage


def get_config(scale: str = "mini") -> ConfigDict:
    config = bases.world_config(scale, "linear_probe", steps=350)
    config.about.question = "Are ViTs more compute-efficient image encoders than ResNets?"
    config.about.place = "figs. 10 to 12"
    config.about.finding = "by linear probes over 12 and 27 sets, ViTs are about three times as compute-efficient."
    own = "Pictures of 64 pixels, three sizes of each kind, all with the same text tower and the same learning rate; "
    config.about.note = (
        (own if scale == "mini" else "Text towers and learning rates are those of tables 19 and 20; ")
        + "Adam's b2 and eps are those of the kind (table 18). The ratio is the least compute of a ResNet's image "
        "tower with the accuracy of the largest one over that of a ViT's with the same. Asked: a ratio above 1."
    )
    if scale == "mini":
        config.suite.suite.datasets = bases.WORLD_SETS[:8]
        config.base.vision.image_size, config.base.vision.patch_size = 64, 16
    config.figure.kind, config.figure.x, config.figure.log_x = "lines", "image_compute", True
    config.figure.series = (("{family}", PROBE),)
    config.figure.x_label, config.figure.y_label = "FLOPs of encoding one image", "linear probe, average over sets"
    config.paper.series = tuple(PAPER.items())
    config.paper.x_label, config.paper.y_label = "GFLOPs of encoding one pair", "zero-shot accuracy on ImageNet"
    config.paper.source = "its released weights, zero-shot on ImageNet (figs. 10 to 12 are of probes)"
    vit, resnet = ({**PROBE, "family": family} for family in PAPER)
    words = "compute of a ResNet over that of an equal ViT:"
    config.findings = (finding(words, "ratio_to_reach", vit, resnet, x="image_compute", low=1, unit="times"),)
    return config


def arms(scale: str) -> dict:
    """Three sizes of each kind; at full scale the paper's that compare at the least cost."""
    if scale == "full":
        resnets = {f"ResNet/{name}": bases.published(name) for name in ("RN50", "RN101", "RN50x4")}
        return {"ViT/B-32": bases.same, "ViT/B-16": bases.changed(vision__patch_size=16), **resnets}
    vits = {f"ViT/{name}": vit(*bases.SIZES[name]) for name in RESNETS}
    return {**vits, **{f"ResNet/{name}": resnet(*size) for name, size in RESNETS.items()}}


def vit(width: int, depth: int):
    """A run with a ViT of another size; the text tower stays."""
    return changed(vision__width=width, vision__depth=depth, vision__num_heads=width // 16)


def resnet(stem_width: int, blocks: int):
    """A run with a ResNet, so many blocks in each of its four stages; the text tower stays."""

    def change(config: ConfigDict) -> ConfigDict:
        vision = {"image_size": 64, "stages": (blocks,) * 4, "stem_width": stem_width, "num_heads": 8}
        config.vision = ConfigDict({**vision, "batch_norm": "global"})
        config.optimizer.b2, config.optimizer.eps = 0.999, 1e-8
        return config

    return change
