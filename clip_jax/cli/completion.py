"""Completion of a shell: `eval "$(clip-jax completion bash)"`, or zsh in place of bash, in its start-up file.

The shell asks `clip-jax completion --words` for what may stand at the cursor: commands, flags, names of configs, keys.
"""

import importlib
import sys
from collections.abc import Iterable, Sequence

BASH = """_clip_jax() {
  local IFS=$'\\n'
  COMPREPLY=($(COMP_WORDBREAKS= clip-jax completion --words "${COMP_LINE:0:COMP_POINT}" 2>/dev/null))
  [[ ${COMPREPLY[0]} == *[=.] ]] && compopt -o nospace
}
complete -o default -F _clip_jax clip-jax"""
SHELLS = {"bash": BASH, "zsh": f"autoload -U +X bashcompinit && bashcompinit\n{BASH}"}


def main(arguments: Sequence[str], commands: Iterable[str]) -> None:
    """Prints the script of a shell, or with --words the completions of a line, one each; raises SystemExit."""
    if len(arguments) == 2 and arguments[0] == "--words":
        print("\n".join(completions(arguments[1], commands)))
    elif len(arguments) == 1 and arguments[0] in SHELLS:
        print(SHELLS[arguments[0]])
    else:
        print(f"{__doc__}\nusage: clip-jax completion {'|'.join(SHELLS)}")
        sys.exit(0 if arguments in ([], ["--help"], ["-h"]) else 1)


def completions(line: str, commands: Iterable[str]) -> list[str]:
    """What may follow or end the last word of a line; as bash wants it, without what stands before a "=" in it."""
    *before, last = line.split(" ")
    words = [word for word in before[1:] if word]
    module = None
    for word in words:
        names = commands if module is None else getattr(module, "KINDS", {})
        if word in names:
            module = importlib.import_module(f"{module.__name__ if module else 'clip_jax.cli'}.{word}")
    if module is None:
        return _starting([*commands, "completion", "--version", "--help"], last)
    if kinds := getattr(module, "KINDS", None):
        return _starting(kinds, last)
    from clip_jax.cli.common_flags import own_flags, shipped_configs

    name, equals, value = last.partition("=")
    names = [flag.name for flag in own_flags(module)]
    if name == "--config" and equals:
        return _starting(shipped_configs(), value)
    if name.startswith("--config.") and not equals:
        given = next((word.partition("=")[2] for word in words if word.startswith("--config=")), "")
        return _starting(_keys(given or getattr(module, "DEFAULT_CONFIG", "clip_vit_b32")), last)
    if equals or not last.startswith("-"):
        return []
    keys = ["--config."] if "config" in names else []
    return _starting([*(f"--{n}=" for n in names), *keys, "--help"], last)


def _keys(config: str) -> list[str]:
    try:
        sections = importlib.import_module(f"configs.{config.replace('/', '.')}").get_config().to_dict()
    except (ImportError, AttributeError, ValueError):  # a file of the user's, or a word not yet whole
        return []
    return [f"--config.{section}.{key}=" for section, keys in sections.items() for key in keys]


def _starting(words: Iterable[str], start: str) -> list[str]:
    return [word for word in words if word.startswith(start)]
