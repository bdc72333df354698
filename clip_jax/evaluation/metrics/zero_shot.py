"""Zero-shot classification: class names become text embeddings, the nearest one is the prediction.

Reference: Radford et al. 2021, sec. 3.1.
"""

import itertools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, Num

from clip_jax.evaluation.metrics.classification import accuracies, classify


def make_prompts(
    class_names: Sequence[str | Sequence[str]], templates: Sequence[str]
) -> tuple[list[tuple[str, ...]], list[str]]:
    """The names of each class, and the prompts name after name, each with all templates.

    Arguments and errors as for `class_embeddings`.
    """
    if len(class_names) < 2:
        raise ValueError(f"zero-shot classification needs at least two class names, got {list(class_names)}")
    names = [(name,) if isinstance(name, str) else tuple(name) for name in class_names]
    if repeated := [name for name, count in Counter(itertools.chain(*names)).items() if count > 1]:
        raise ValueError(f"class names appear more than once: {', '.join(map(repr, repeated))}; rename or merge them")
    if () in names:
        raise ValueError(f"class {names.index(())} has no name")
    if not templates:
        raise ValueError("no prompt template given; '{}' alone stands for the bare class name")
    for template in templates:
        if template.count("{}") != 1:
            raise ValueError(f"prompt template {template!r} needs exactly one {{}} for the class name")

    return names, [template.replace("{}", name) for several in names for name in several for template in templates]


def class_embeddings(
    encode_texts: Callable[[np.ndarray], np.ndarray],
    tokenize: Callable[[Sequence[str]], np.ndarray],
    class_names: Sequence[str | Sequence[str]],
    templates: Sequence[str],
) -> Float32[np.ndarray, "C E"]:
    """One embedding a class: the normalised mean of the normalised embeddings of all its prompts.

    A class of several names, as "happy" and "smiling", has the prompts of all of them.

    Args:
      encode_texts: int32 [N, L] tokens to [N, E] embeddings, any N; called once with all prompts.
      tokenize: N strings to int32 [N, L].
      class_names: C names, at least two, or for a class several; all of them different.
      templates: T strings with exactly one `{}` each.

    Returns:
      float32 [C, E], L2-normalised.

    Raises:
      ValueError: for names or templates that break the rules above.

    Reference: Radford et al. 2021, sec. 3.1.4 (ensembling over the embedding space).
    """
    names, prompts = make_prompts(class_names, templates)
    embeddings = normalized(encode_texts(tokenize(prompts)))  # [prompts, E]
    counts = np.array([len(several) * len(templates) for several in names])
    starts = np.append(0, np.cumsum(counts)[:-1])
    return normalized(np.add.reduceat(embeddings, starts, axis=0) / counts[:, None])


def class_scores(
    score_prompts: Callable[[np.ndarray], np.ndarray],
    tokenize: Callable[[Sequence[str]], np.ndarray],
    class_names: Sequence[str | Sequence[str]],
    templates: Sequence[str],
) -> Float[np.ndarray, "N C"]:
    """For a model that predicts captions: how well each class fits each image, the mean over its prompts, [N, C].

    score_prompts: int32 [M, T, L], T prompts of M names, to [N, M], the mean of a name's; called once.
    Other arguments and errors as for `class_embeddings`.
    """
    names, prompts = make_prompts(class_names, templates)
    tokens = tokenize(prompts)
    scores = score_prompts(tokens.reshape(-1, len(templates), tokens.shape[1]))  # [N, M]
    counts = np.array([len(several) for several in names])
    starts = np.append(0, np.cumsum(counts)[:-1])
    return np.add.reduceat(scores, starts, axis=1) / counts


def zero_shot_metrics(
    image_embeddings: np.ndarray, labels: np.ndarray, class_embeddings: np.ndarray, class_names: Sequence[str]
) -> dict[str, Any]:
    """`accuracies` of images [N, E] among classes [C, E], both L2-normalised; raises as `classify`."""
    return accuracies(classify(image_embeddings, labels, class_embeddings), class_names)


def normalized(x: Num[np.ndarray, "*B E"]) -> Float32[np.ndarray, "*B E"]:
    """x over its L2 norm along the last axis, float32; a zero vector stays zero."""
    x = np.asarray(x, np.float32)
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), np.finfo(np.float32).tiny)
