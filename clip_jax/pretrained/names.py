"""The table of names: models.json has a row for each of the weights that can be had by name.

Sizes are in model_configs.json, by open_clip's names and in its form. Repositories and tags are as in open_clip 3.3
(pretrained.py) and on the Hub; parameters and FLOPs are ours, and compared with others' in tests.
"""

import dataclasses
import difflib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal

from clip_jax.models import ModelConfig
from clip_jax.pretrained.open_clip import config_from_open_clip

SIZES: Mapping[str, Any] = json.loads((files(__package__) / "model_configs.json").read_text())


@dataclass(frozen=True, kw_only=True)
class NamedModel:
    """A row of the table.

    Attributes:
      name, aliases: what `load` takes. Pairs as ViT-B-32/laion2b_s34b_b79k are open_clip's architecture and tag.
      repository, file: on the Hugging Face Hub; form: of the file.
      sizes: key of SIZES.
      activation: what the weights were trained with, as far as their authors or open_clip say; of SigLIP in open_clip's
        form what its image tower computes.
      tokenizer: in words. The vocabulary comes with the weights.
      parameters: the model's, without constants. gflops: of encoding one image and one text, 2 for a multiply-add.
      licence: of the weights. note: what to know before use.
    """

    name: str
    repository: str
    file: str
    sizes: str
    activation: Literal["quick_gelu", "gelu", "gelu_tanh"]
    tokenizer: str
    parameters: int
    gflops: float
    licence: str
    aliases: tuple[str, ...] = ()
    form: Literal["open_clip", "transformers"] = "open_clip"
    note: str = ""

    @property
    def config(self) -> ModelConfig:
        """The architecture; mean, standard deviation and end token are the files' to say."""
        config, _ = config_from_open_clip(SIZES[self.sizes])
        text = {"text_activation": ""} if self.form == "transformers" else {}
        return dataclasses.replace(config, activation=self.activation, **text)  # type: ignore[arg-type]


NAMED = [
    NamedModel(**{**row, "aliases": tuple(row.get("aliases", ()))})
    for row in json.loads((files(__package__) / "models.json").read_text())
]
BY_NAME = {name: row for row in NAMED for name in (row.name, *row.aliases)}


def similar_names(name: str) -> list[str]:
    """Names that an unknown one may mean, as ViT-B/32 for vit_b32; at most three."""

    def plain(name: str) -> str:
        return re.sub(r"[^a-z0-9]", "", name.lower().removesuffix("/openai"))

    known: dict[str, str] = {}
    for spelled, row in BY_NAME.items():
        known.setdefault(plain(spelled), row.name)
    if (asked := re.sub("^(hfhub)?(openai)?|openai$", "", plain(name))) in known:
        return [known[asked]]
    return list(dict.fromkeys(known[found] for found in difflib.get_close_matches(asked, known, 3, 0.75)))
