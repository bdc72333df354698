"""The console command: `clip-jax train ...` is `python -m clip_jax.train ...`."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from absl import app, flags, logging

COMMANDS = {"train": "train a model from a config", "evaluate": "measure a trained model"}

flags.DEFINE_bool("traceback", False, "Show where an error came from, not only its message.")


def main() -> None:
    """Entry point of the `clip-jax` command."""
    command = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if command == "train":
        from clip_jax import train as module
    elif command == "evaluate":
        from clip_jax import evaluate as module  # type: ignore[no-redef]
    else:
        lines = [f"  {name:10} {what}" for name, what in COMMANDS.items()]
        usage = "\n".join(["usage: clip-jax COMMAND [--flags]", *lines, "clip-jax COMMAND --help lists the flags."])
        if command in ("-h", "--help", "help"):
            print(usage)
            return
        _fail(f"unknown command {command!r}\n{usage}")
    run(module.main, [f"{sys.argv[0]} {command}", *sys.argv[2:]])


def run(command: Callable[[], int | None], argv: Sequence[str]) -> None:
    """Parses the flags and runs a command; a mistake of the user ends in one message and exit code 1."""

    def guarded(_: Sequence[str]) -> int | None:
        try:
            return command()
        except (ValueError, OSError) as error:
            if flags.FLAGS.traceback:
                raise
            _fail(f"{error}\n(--traceback shows where this came from)")

    app.run(guarded, argv=list(argv), flags_parser=_parse_flags)


def _parse_flags(argv: Sequence[str]) -> list[str]:
    argv = [_find_shipped_config(argument) for argument in argv]
    try:
        rest = flags.FLAGS(argv)
    except (flags.Error, AttributeError, KeyError, TypeError, OSError) as error:
        message = str(error.args[0] if error.args else error).strip("'\"").replace("\\n", " ")
        _fail(f"{message}\n{Path(argv[0]).name} --help lists the flags")
    if flags.FLAGS["verbosity"].using_default_value:  # the libraries' information would bury the progress bar
        flags.FLAGS.verbosity = logging.WARNING
    if len(rest) > 1:
        _fail(f"unexpected argument {rest[1]!r}: flags begin with --")
    return rest


def _find_shipped_config(argument: str) -> str:
    """--config=tiny means the shipped configs/tiny.py; anything with a slash or a suffix is a path."""
    name, _, value = argument.partition("=")
    if name != "--config" or not value or "/" in value or "." in value:
        return argument
    folder = Path(__file__).parent.parent / "configs"
    if not (folder / f"{value}.py").is_file():
        known = sorted(file.stem for file in folder.glob("*.py") if file.stem != "__init__")
        _fail(f"there is no shipped config {value!r}: use one of {', '.join(known)}, or the path of a file")
    return f"{name}={folder / value}.py"


def required(flag: flags.FlagHolder[Any], example: str) -> Any:
    """A flag's value; raises ValueError with an example when it was not given."""
    if flag.value is None:
        raise ValueError(f"--{flag.name} is missing: for instance --{flag.name}={example}")
    return flag.value


def _fail(message: str) -> NoReturn:
    print(f"clip-jax: error: {message}", file=sys.stderr)
    sys.exit(1)


if __name__ == "__main__":
    main()
