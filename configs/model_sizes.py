"""The sizes of the published models, by name, from the table that `clip_jax.models.PUBLISHED` reads, too.

For instance MODEL_SIZES["RN50"]["vision"]["image_size"] is 224. Sections and keys are those of a config: image_size and
patch_size in pixels, widths in channels, depth and stages in blocks, context_length in tokens. mlp_dim is named only
where it is not 4 * width. The table lies with the models, so that `import clip_jax` needs no package named configs.

Reference: Radford et al. 2021, tables 19 and 20 (openai); Cherti et al. 2022, https://arxiv.org/abs/2212.07143
(open_clip); Zhai et al. 2023, https://arxiv.org/abs/2303.15343 (siglip).
"""

import json
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

FILE = Path(__file__).parents[1] / "clip_jax" / "models" / "model_sizes.json"
FAMILIES: dict[str, dict[str, dict[str, dict[str, Any]]]] = json.loads(FILE.read_text())
MODEL_SIZES = {**FAMILIES["openai"], **FAMILIES["open_clip"], **FAMILIES["siglip"]}
for sizes in MODEL_SIZES.values():
    if "stages" in sizes["vision"]:
        sizes["vision"]["stages"] = tuple(sizes["vision"]["stages"])


def set_sizes(config: ConfigDict, name: str) -> ConfigDict:
    """The config with the sizes of a published model; its image tower has to be of the same kind."""
    for section, sizes in MODEL_SIZES[name].items():
        config[section].update(sizes)
    return config
