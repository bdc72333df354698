"""Prompt templates as data: one JSON file a set, with its source."""

import json
from importlib.resources import files


def template_names() -> tuple[str, ...]:
    """Names of the template sets in the package, sorted."""
    return tuple(
        sorted(file.name.removesuffix(".json") for file in files(__name__).iterdir() if file.name.endswith(".json"))
    )


def load_templates(name: str) -> tuple[str, ...]:
    """Templates of one set, each with exactly one `{}` where the class name goes.

    "bare" is the class name alone, "one" the paper's default prompt, "imagenet80" the ensemble of the paper's
    zero-shot results and "imagenet7" its released short form.

    Raises:
      ValueError: no set of that name.

    Reference: Radford et al. 2021, sec. 3.1.4.
    """
    if name not in (known := template_names()):
        raise ValueError(f"no prompt templates named {name!r}: choose one of {', '.join(known)}")
    return tuple(json.loads(files(__name__).joinpath(f"{name}.json").read_text(encoding="utf-8"))["templates"])
