"""Five sizes: error against compute: clip-jax ablate scaling --workdir=runs/ablations"""

from ml_collections import ConfigDict

from configs.ablations import bases
from configs.ablations.bases import ZERO_SHOT, finding

# GFLOPs of one pair, by open_clip's profile; 1 less the zero-shot accuracy on ImageNet of the released weights.
RESNETS = ((18.18, 0.404), (25.5, 0.378), (51.82, 0.342), (162.69, 0.295), (552.65, 0.264))


def get_config(scale: str = "mini") -> ConfigDict:
    config = bases.get_config(scale)
    config.about.question = "Does zero-shot error fall smoothly with the model's compute?"
    config.about.place = "fig. 9"
    config.about.finding = "over five ResNets and 44 times the compute, the average error of 36 sets is log-log linear."
    here = "five ViTs on the drawn sets" if scale == "mini" else "the paper's ResNets on ImageNet"
    config.about.note = f"Here {here}. Asked: a falling line, with R² of at least 0.9."
    config.base, config.measure.sets = bases.world(scale, steps=700), ()
    config.figure.kind, config.figure.x, config.figure.error = "lines", "compute", True
    config.figure.log_x = config.figure.log_y = True
    config.figure.x_label = "FLOPs of encoding one pair"
    config.figure.y_label = "zero-shot error, average over sets"
    config.paper.series = (("ResNets", RESNETS),)
    config.paper.x_label = "GFLOPs of encoding one pair"
    config.paper.y_label = "zero-shot error on ImageNet"
    config.paper.source = "its released ResNets on ImageNet (fig. 9 is of 36 sets)"
    config.findings = (
        finding("slope of the log-log fit", "log_slope", ZERO_SHOT, x="compute", high=0, unit="number"),
        finding("its R²", "log_r2", ZERO_SHOT, x="compute", low=0.9, unit="number"),
    )
    return config


def arms(scale: str) -> dict:
    return bases.sizes(scale)
