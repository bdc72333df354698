"""Random square crops of several sizes, beside none: clip-jax ablate augmentation --workdir=runs/ablations"""

from ml_collections import ConfigDict

from configs.ablations import bases
from configs.ablations.bases import ZERO_SHOT, changed, finding, same

SMALLEST = {"mini": (0.9, 0.7, 0.4), "full": (0.9, 0.5, 0.3)}  # side of the crop, of the picture's shorter side


def get_config(scale: str = "mini") -> ConfigDict:
    config = bases.get_config(scale)
    config.about.question = "Do stronger crops than the paper's mild one help?"
    config.about.place = "sec. 2.4"
    config.about.finding = "a random square crop from resized images is the only augmentation; no other is shown."
    config.about.note = (
        "Asked: the strongest crop stays below the whole side, so that more augmentation than the paper's is no gain."
    )
    if scale == "mini":
        config.about.note += " Drawn pictures are square: the whole side is no crop at all. No picture is seen twice."
    names = ("whole side", *(f"{share:g} and more" for share in (SMALLEST[scale][-1], SMALLEST[scale][0])))
    whole, strongest, mildest = ({**ZERO_SHOT, "arm": name} for name in names)
    config.findings = (
        finding("the whole side less the strongest crop:", "difference", whole, strongest, low=0),
        finding("less the mildest:", "difference", whole, mildest),
    )
    return config


def arms(scale: str) -> dict:
    crops = {f"{share:g} and more": changed(data__min_crop_scale=share) for share in SMALLEST[scale]}
    return {"whole side": same, **crops}
