"""README.md with the figures of all finished ablations: sentence, command, commit, seeds, minutes."""

import json
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

from jinja2 import Environment

from clip_jax.ablations.spec import ablation_names
from input_pipeline.storage import write_bytes, write_text


def write_gallery(workdir: Path, folder: Path, say: Callable[[str], None] = print) -> None:
    """Writes README.md and NAME.png into the folder from the results in the workdir; what is the same already stays.

    Raises ValueError where there are none.
    """
    found = [name for name in ablation_names() if (workdir / name / "results.json").is_file()]
    if not found:
        raise ValueError(f"{workdir} has no finished ablations: run clip-jax ablate all --workdir={workdir} first")
    folder.mkdir(parents=True, exist_ok=True)
    for name in found:
        source, target = workdir / name / "figure.png", folder / f"{name}.png"
        if not target.is_file() or target.read_bytes() != source.read_bytes():
            write_bytes(target, source.read_bytes())
    results = [json.loads((workdir / name / "results.json").read_text()) for name in found]
    missing = [name for name in ablation_names() if name not in found]
    template = files(__package__).joinpath("gallery.md.j2").read_text(encoding="utf-8")
    text = (
        Environment(trim_blocks=True, lstrip_blocks=True).from_string(template).render(results=results, missing=missing)
    )
    write_text(folder / "README.md", text)
    say(f"gallery of {len(found)} ablations: {folder / 'README.md'}")
