"""Reads weights of any layout and writes them in another: `clip-jax convert --model=ViT-B/32 --output=out`.

--model is a run's workdir, a folder or safetensors file of OpenAI, open_clip or transformers, a published name, or a
Hub repository. --output is a folder that open_clip (`local-dir:`) or transformers (`from_pretrained`) loads.
"""

from pathlib import Path

from absl import flags

from clip_jax.cli import common_flags
from clip_jax.tables import format_table

common_flags.declare("model", "output", "activation")
FORMAT = flags.DEFINE_enum(
    "format", "huggingface", ("huggingface", "open_clip"), "Layout of the output.", allow_override=True
)
IMAGE_SIZE = flags.DEFINE_integer("image_size", None, "Image size of the output in pixels; positions are interpolated.")
CONTEXT_LENGTH = flags.DEFINE_integer("context_length", None, "Text positions of the output; they are interpolated.")


def main() -> int:
    """Runs the command; see the module's docstring."""
    import jax

    from clip_jax.inference.load import open_model
    from clip_jax.models import ResNetConfig
    from clip_jax.models.variables import split_variables
    from clip_jax.pretrained import save_pretrained

    name = common_flags.required(common_flags.MODEL, "runs/tiny")
    output = Path(common_flags.required(common_flags.OUTPUT, "exported"))
    if output.exists():
        raise ValueError(f"--output={output} exists already: remove it or choose another folder")
    pretrained, tokenizer = open_model(
        name, activation=common_flags.ACTIVATION.value, image_size=IMAGE_SIZE.value, context_length=CONTEXT_LENGTH.value
    )
    save_pretrained(pretrained, output, FORMAT.value, tokenizer)  # type: ignore[arg-type]
    config = pretrained.config
    params, _ = split_variables(pretrained.variables)
    tower = "ResNet" if isinstance(config.vision, ResNetConfig) else "ViT"
    rows = [
        ["parameters", f"{sum(leaf.size for leaf in jax.tree.leaves(params)):,}"],
        ["image", f"{config.vision.image_size} pixels, {tower}"],
        ["text", f"{config.text.context_length} positions, {config.text.vocab_size:,} tokens"],
        ["features", str(config.embed_dim)],
        ["activation, layer norm eps", f"{config.activation}, {config.layer_norm_eps:g}"],
        ["vocabulary", "not found: put it into the folder" if tokenizer is None else tokenizer.kind],
        ["files", ", ".join(sorted(file.name for file in output.iterdir()))],
    ]
    print(format_table([str(output), FORMAT.value], rows))
    return 0
