"""A model as the argument of a pure function: its graph, and its arrays as one nested dict."""

from collections.abc import Iterable
from typing import Any

from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import PRNGKeyArray

from clip_jax.models.caption_models import BagOfWords, LanguageModel
from clip_jax.models.clip import CLIP
from clip_jax.models.config import ModelConfig

Params = dict[str, Any]
Variables = dict[str, Any]  # parameters and running statistics in one nested dict
# The modules of a tower, by the first key of a parameter's path.
TOWERS = {"visual": ("visual", "visual_projection"), "text": ("text", "text_projection")}


def make_model(config: ModelConfig, rngs: nnx.Rngs) -> CLIP | BagOfWords | LanguageModel:
    """The model that a config describes, with random parameters."""
    match config.head:
        case "bag_of_words":
            return BagOfWords(config, rngs)
        case "language_model":
            return LanguageModel(config, rngs)
    return CLIP(config, rngs)


def model_graph(config: ModelConfig) -> nnx.GraphDef[Any]:
    """The model without its arrays; `nnx.merge(graph, variables)` gives the module back."""
    return nnx.split(nnx.eval_shape(lambda: make_model(config, nnx.Rngs(0))))[0]


def init_variables(config: ModelConfig, key: PRNGKeyArray) -> Variables:
    """Initial parameters and running statistics as a nested dict of arrays."""
    return nnx.to_pure_dict(nnx.split(make_model(config, nnx.Rngs(key)))[1])


def split_variables(variables: Variables) -> tuple[Params, Variables]:
    """Parameters, and the running statistics: mean, var and count of batch norms."""
    flat = flatten_dict(variables)
    is_statistic = {path: path[-1] in ("mean", "var", "count") for path in flat}
    params, batch_stats = (
        unflatten_dict({path: leaf for path, leaf in flat.items() if is_statistic[path] == wanted})
        for wanted in (False, True)
    )
    return params, batch_stats


def join_variables(*parts: Variables) -> Variables:
    """One nested dict of several that share no leaf; the inverse of `split_variables`."""
    return unflatten_dict({path: leaf for part in parts for path, leaf in flatten_dict(part).items()})


def tower_variables(variables: Variables, towers: Iterable[str]) -> Variables:
    """Those of the named towers, of "visual" and "text"; the logit scale belongs to neither."""
    names = {name for tower in towers for name in TOWERS[tower]}
    return {name: value for name, value in variables.items() if name in names}
