"""Patches left out in training: clip-jax ablate patch_dropout --workdir=runs/ablations"""

from ml_collections import ConfigDict

from configs.ablations import bases
from configs.ablations.bases import changed, same, zero_shot_difference


def get_config(scale: str = "mini") -> ConfigDict:
    config = bases.get_config(scale)
    config.about.question = "What does it cost to leave out patches in training?"
    config.about.place = "Li et al. 2022 (FLIP), sec. 4.1"
    config.about.finding = "half of the patches left out cost little accuracy over the same pairs, at half the compute."
    config.about.note = (
        "Over the same pairs, at the same batch, without FLIP's last steps on whole images. Asked: half of the patches "
        "cost less than three points."
    )
    config.findings = (zero_shot_difference("half of the patches left out less none:", "half", "none", low=-0.03),)
    return config


def arms(scale: str) -> dict:
    return {"none": same, "half": changed(vision__patch_dropout=0.5)}
