"""Rewrites open_clip_configs.json: which of open_clip's model configs clip_jax reads, with the parameter count, and why
not the others.

    pip download --no-deps open_clip_torch==3.3.0 && unzip -q open_clip_torch-*.whl
    python tests/pretrained/open_clip_configs.py open_clip

The package is read as files, and need not be installed.
"""

import json
import sys
from pathlib import Path

import jax

from clip_jax.models.variables import init_variables
from clip_jax.pretrained.open_clip import config_from_open_clip

REASONS = ("a ConvNeXt", "a ViTamin", "an EVA", "FastViT", "MobileCLIP's B", "MobileCLIP's L", "relative positions",
    "without a class token", "a Swin transformer", "text tower is", "ls_init_value", "proj_type")  # fmt: skip
FIRST = ("embed_dim", "vision_cfg", "text_cfg")


def main(package: Path) -> None:
    accepted, refused = {}, {}
    for file in sorted((package / "model_configs").glob("*.json")):
        config = json.loads(file.read_text())
        try:
            model, _ = config_from_open_clip(config)
        except (ValueError, LookupError) as error:
            reason = next((reason for reason in REASONS if reason in str(error)), str(error))
            refused[file.stem] = {name: config[name] for name in FIRST}, reason
            continue
        shapes = jax.eval_shape(lambda model=model: init_variables(model, jax.random.key(0)))
        accepted[file.stem] = sum(leaf.size for leaf in jax.tree.leaves(shapes))
    parts = []
    for kind, rows in (("accepted", accepted), ("refused", refused)):
        lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(row)}" for name, row in rows.items())
        parts.append(f'  "{kind}": {{\n{lines}\n  }}')
    Path(__file__).with_suffix(".json").write_text("{\n" + ",\n".join(parts) + "\n}\n")
    print(f"{len(accepted)} accepted, {len(refused)} refused: {', '.join(refused)}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
