"""The console command: `clip-jax COMMAND` runs `main` of the module of that name beside this one."""

import importlib
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

from absl import app, flags, logging
from ml_collections import config_flags

# Each is a module of this name with `main()`, or with `main(arguments)` where POSITIONAL says what they are;
# DEFAULT_CONFIG names the config whose keys are meant when none is given.
COMMANDS = {
    "plan": "tell what a config asks of its devices",
    "train": "train a model from a config",
    "evaluate": "measure a trained model",
    "ablate": "redraw an ablation of the paper: runs, figure, report",
    "embed": "embed a folder or a data set of pictures and captions",
    "prepare": "make any data set ArrayRecord shards of small pictures, and account for every record",
    "inspect": "show what is in a data set: statistics and a contact sheet",
    "classify": "tell which of your labels fit pictures",
    "tokenizer": "train a vocabulary on a data set's captions",
    "convert": "read weights of any layout, write them in another",
    "bench": "measure speed and memory, of several kinds",
}
# Of several kinds, each a module of the package, with flags of its own, that the package's KINDS tells.
PACKAGES = {"bench": "clip_jax.benchmarks"}

CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, or the bare name of a shipped one; --config.SECTION.KEY=VALUE changes a key."
)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of a run: checkpoints, metrics, pictures.")
# Flags that several commands have; one may define its own with other words.
MODEL = flags.DEFINE_string("model", None, "Weights, by name or path as clip_jax.load takes them.", allow_override=True)
OUTPUT = flags.DEFINE_string("output", None, "Folder for the results.", allow_override=True)
ACTIVATION = flags.DEFINE_string("activation", None, "quick_gelu, gelu or gelu_tanh, for weights without a config.")
# Several processes, each with the same command; within a cluster they are found by themselves.
COORDINATOR = flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, to start several processes by hand.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many there are.", lower_bound=1)
PROCESS_ID = flags.DEFINE_integer("process_id", None, "Which one this is, from 0.", lower_bound=0)
CLUSTER = flags.DEFINE_string(
    "cluster", "auto", "Where those come from: auto looks for TPU, Slurm and Open MPI; none; or a detector of JAX's."
)
HOST_TIMEOUT_S = flags.DEFINE_integer("host_timeout_s", 300, "How long to wait for all processes.", lower_bound=1)
HOST_FLAGS = ("coordinator", "num_processes", "process_id", "cluster", "host_timeout_s")
flags.DEFINE_bool("traceback", False, "Show where an error came from, not only its message.")


def main() -> None:
    """Entry point of the `clip-jax` command."""
    command = _choose("clip-jax", "command", COMMANDS, sys.argv[1:])
    module = importlib.import_module(
        PACKAGES.get(command, f"clip_jax.cli.{command}")
    )  # only this one: each takes seconds
    words = [sys.argv[0], command]
    if command in PACKAGES:
        kind = _choose(f"clip-jax {command}", "kind", module.KINDS, sys.argv[2:])
        module = importlib.import_module(f"{module.__name__}.{kind}")
        words.append(kind)
    run(module.main, [" ".join(words), *sys.argv[len(words) :]])


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
    _fail(f"unknown {what} {name!r}\n{usage}")


def run(command: Callable[..., int | None], argv: Sequence[str]) -> None:
    """Parses the flags and runs a command; a mistake of the user ends in one message and exit code 1."""
    module = sys.modules[command.__module__]
    argv, names = list(argv), [argument.partition("=")[0] for argument in argv]
    if hasattr(module, "DEFAULT_CONFIG") and "--config" not in names and any(n.startswith("--config.") for n in names):
        argv.insert(1, f"--config={module.DEFAULT_CONFIG}")
    if {"-h", "--help"} & set(argv[1:]):
        print(_help(module))
        return

    def guarded(rest: Sequence[str]) -> int | None:
        takes_arguments = hasattr(module, "POSITIONAL")
        if len(rest) > 1 and not takes_arguments:
            _fail(f"unexpected argument {rest[1]!r}: flags begin with --")
        try:
            return command(rest[1:]) if takes_arguments else command()
        except (ValueError, OSError) as error:
            if flags.FLAGS.traceback:
                raise
            _fail(f"{error}\n(--traceback shows where this came from)")
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 128 + signal.SIGINT

    app.run(guarded, argv=argv, flags_parser=_parse_flags)


def _help(module: ModuleType) -> str:
    own = [*flags.FLAGS.get_key_flags_for_module(module), flags.FLAGS["traceback"]]
    return "\n".join([module.__doc__ or "", "", "flags:", *(f"  --{flag.name}: {flag.help}" for flag in own)])


def _parse_flags(argv: Sequence[str]) -> list[str]:
    try:
        rest = flags.FLAGS(_find_config(argv))
    except (flags.Error, AttributeError, KeyError) as error:
        _fail(f"{_describe(error)}\n--help lists the flags")
    if flags.FLAGS["verbosity"].using_default_value:  # the libraries' information would bury the progress bar
        logging.set_verbosity(logging.WARNING)
        # Of a save that failed they log many tracebacks; checkpoint.py reports it in one sentence.
        noisy = {"orbax", "asyncio", "concurrent"}
        logging.get_absl_handler().python_handler.addFilter(lambda r: not noisy & set(Path(r.pathname).parts))
    return rest


def _describe(error: Exception) -> str:
    if isinstance(error, flags.Error):
        return str(error)
    while isinstance(error.args[0], Exception):  # for an unknown key, a KeyError within an AttributeError
        error = error.args[0]
    return "unknown config key " + str(error.args[0]).replace("\n", ". ")


def _find_config(argv: Sequence[str]) -> list[str]:
    """--config=tiny and --config tiny mean the shipped configs/tiny.py, as suites/paper means configs/suites/paper.py;
    what has a suffix, or is a file, is a path."""
    argv = list(argv)
    for i, argument in enumerate(argv):
        name, _, value = argument.partition("=")
        if name != "--config":
            continue
        if "=" not in argument:
            value = argv.pop(i + 1) if i + 1 < len(argv) else ""
        file = Path(value)
        if "." not in value and not file.is_file():
            folder = Path(__file__).parents[2] / "configs"
            file = folder / f"{value}.py"
            if not file.is_file():
                names = (path.relative_to(folder).with_suffix("") for path in folder.rglob("*.py"))
                known = sorted(name.as_posix() for name in names if name.name not in ("__init__", "model_sizes"))
                known = [name for name in known if not name.startswith("ablations/")]  # those are `ablate`'s own
                _fail(f"there is no shipped config {value!r}: use one of {', '.join(known)}, or the path of a file")
        if not file.is_file():
            _fail(f"there is no config file {value}")
        argv[i] = f"--config={file}"
    return argv


def host_options() -> dict[str, Any]:
    """The arguments of `distributed.joined`."""
    return {
        "coordinator": COORDINATOR.value,
        "num_processes": NUM_PROCESSES.value,
        "process_id": PROCESS_ID.value,
        "cluster": CLUSTER.value,
        "timeout_s": HOST_TIMEOUT_S.value,
    }


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


def required(flag: flags.FlagHolder[Any], example: str) -> Any:
    """A flag's value; raises ValueError with an example when it was not given."""
    if flag.value is None:
        raise ValueError(f"--{flag.name} is missing: for instance --{flag.name}={example}")
    return flag.value


def _fail(message: str) -> NoReturn:
    print(f"clip-jax: error: {message}", file=sys.stderr)
    sys.exit(1)
