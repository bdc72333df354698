"""Flags that several commands have. A command declares which of them are its own: `declare("config", "workdir")`."""

from pathlib import Path
from typing import Any, TypeVar

from absl import flags
from ml_collections import config_flags

T = TypeVar("T")

ARGV: list[str] = []  # what is parsed, where --config looks for the keys to change
CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Config file, or the bare name of a shipped one; --config.SECTION.KEY=VALUE changes a key.",
    sys_argv=ARGV,
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run: checkpoints, metrics, pictures.")
# A benchmark has a --model of its own, `plan` an --output.
MODEL = flags.DEFINE_string(
    "model", None, "Name or path of the weights, as clip_jax.load takes them.", allow_override=True
)
OUTPUT = flags.DEFINE_string("output", None, "Folder for the results.", allow_override=True)
ACTIVATION = flags.DEFINE_string(
    "activation", None, "Activation of weights without a config: quick_gelu, gelu or gelu_tanh."
)
TRACEBACK = flags.DEFINE_bool("traceback", False, "Traceback of an error, beside its message.")
# From here on absl takes the caller of `declare` for the module whose flags are declared.
flags.disclaim_key_flags()


def declare(*names: str) -> None:
    """Makes flags that are defined elsewhere the calling command's own: --help lists them, and it accepts them."""
    for name in names:
        flags.declare_key_flag(name)


def required(flag: flags.FlagHolder[Any], example: str) -> Any:
    """A flag's value; raises ValueError with an example when it was not given."""
    if flag.value is None:
        raise ValueError(f"--{flag.name} is missing: for instance --{flag.name}={example}")
    return flag.value


def given(flag: flags.FlagHolder[T | None], default: T) -> T:
    """A flag's value, or the command's own default."""
    return default if flag.value is None else flag.value


def config_changes(base: str) -> dict[str, Any]:
    """{"section.key": value} of the --config.SECTION.KEY=VALUE that were given to a command whose configs are its own.

    base: its DEFAULT_CONFIG. Raises ValueError where another --config was given.
    """
    if CONFIG.value is None:
        return {}
    file = Path(config_flags.get_config_filename(flags.FLAGS["config"]))
    if file.stem != base:
        raise ValueError(f"--config={file} is not for this command, whose configs are its own: change keys of them")
    return dict(config_flags.get_override_values(flags.FLAGS["config"]))
