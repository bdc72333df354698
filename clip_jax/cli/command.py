"""The console command: `clip-jax COMMAND` runs `main` of the module of that name beside this one.

Nothing heavy is imported before the command is known.
"""

import importlib
import os
import sys
from collections.abc import Mapping, Sequence
from typing import NoReturn

from clip_jax.installation import check_distributions, check_top_level, skip_missing_tpu, version_line

# Each is a module of this name with `main()`, or with `main(arguments)` where POSITIONAL says what they are;
# DEFAULT_CONFIG names the config whose keys are meant when none is given; HELP and DEFAULTS say what flags shared with
# other commands are in this one. A package has several KINDS, a module each.
COMMANDS = {
    "plan": "predict memory, FLOPs and time of a config's step",
    "train": "train a model from a config",
    "evaluate": "measure a trained model",
    "ablate": "redraw an ablation of the paper: runs, figure, report",
    "embed": "embed a folder or a data set of pictures and captions",
    "prepare": "convert any data set to ArrayRecord shards of small pictures",
    "inspect": "show statistics and a contact sheet of a data set",
    "classify": "rank your labels for pictures",
    "tokenizer": "train a vocabulary on a data set's captions",
    "models": "list the models that can be had by name",
    "convert": "convert weights from one layout to another",
    "bench": "measure speed and memory",
}


def main() -> None:
    """Entry point of the `clip-jax` command. A reader that has enough, as `| head`, ends it without a word."""
    try:
        try:
            _run()
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is still to be written at exit
        sys.exit(128 + 13)  # as of a program that SIGPIPE ends


def _run() -> None:
    try:
        check_distributions()  # again: the package's __init__.py may be the other's
        check_top_level()
    except ImportError as error:
        _fail(str(error))
    if sys.argv[1:2] == ["--version"]:
        print(version_line())
        return
    if sys.argv[1:2] == ["completion"]:
        from clip_jax.cli.completion import main as complete

        return complete(sys.argv[2:], COMMANDS)
    name = _choose("clip-jax", "command", COMMANDS, sys.argv[1:])
    skip_missing_tpu()
    words = [sys.argv[0], name]
    module = importlib.import_module(f"clip_jax.cli.{name}")
    if hasattr(module, "__path__"):
        words.append(_choose(f"clip-jax {name}", "kind", module.KINDS, sys.argv[2:]))
        module = importlib.import_module(f"{module.__name__}.{words[-1]}")
    from clip_jax.cli.common_flags import run_command

    run_command(module.main, [" ".join(words), *sys.argv[len(words) :]])


def _choose(program: str, what: str, names: Mapping[str, str], arguments: Sequence[str]) -> str:
    """The first argument, when it is one of the names; else the usage, as help or with an error, and the end."""
    name = arguments[0] if arguments else "--help"
    if name in names:
        return name
    lines = [f"  {name:{max(map(len, names))}}  {about}" for name, about in names.items()]
    usage = "\n".join(
        [f"usage: {program} {what.upper()} [--flags]", *lines, f"{program} {what.upper()} --help lists the flags."]
    )
    if name in ("-h", "--help", "help"):
        print(usage)
        sys.exit()
    import difflib  # here, for --help is quick

    meant = difflib.get_close_matches(name, names, n=1)
    _fail(f"unknown {what} {name!r}{f': did you mean {meant[0]}?' if meant else ''}\n{usage}")


def _fail(message: str) -> NoReturn:
    print(f"clip-jax: error: {message}", file=sys.stderr)
    sys.exit(1)
