"""Flags that several commands have, and from a command's words to its flags: a mistake ends in one message.

A command declares which of the flags are its own: `declare("config", "workdir")`.
"""

import difflib
import math
import runpy
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn, TypeVar

from absl import app, flags, logging
from ml_collections import config_flags

T = TypeVar("T")

CONFIGS = Path(__file__).parents[2] / "configs"
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
# Of a run in several processes, each with the same command; within a cluster they are found by themselves.
flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0, to start several processes by hand.")
flags.DEFINE_integer("num_processes", None, "Number of processes in the run.", lower_bound=1)
flags.DEFINE_integer("process_id", None, "Index of this process, from 0.", lower_bound=0)
flags.DEFINE_string(
    "cluster",
    "auto",
    "Detection of the processes that no flag names: auto for TPU, Slurm and Open MPI; none; or a detector of JAX's.",
)
flags.DEFINE_integer("host_timeout_s", 300, "Seconds to wait until all processes have started.", lower_bound=1)
HOST_FLAGS = ("coordinator", "num_processes", "process_id", "cluster", "host_timeout_s")
# From here on absl takes the caller of `declare` for the module whose flags are declared.
flags.disclaim_key_flags()


def declare(*names: str) -> None:
    """Makes flags that are defined elsewhere the calling command's own: --help lists them, and it accepts them."""
    for name in names:
        flags.declare_key_flag(name)


def required(flag: flags.FlagHolder[Any], example: str) -> Any:
    """A flag's value; raises ValueError with an example when it was not given, or is empty."""
    if flag.value in (None, ""):
        what = "missing" if flag.value is None else "empty"
        raise ValueError(f"--{flag.name} is {what}: for instance --{flag.name}={example}")
    return flag.value


def given(flag: flags.FlagHolder[T | None], defaults: Mapping[str, T]) -> T:
    """A flag's value, or the one in the command's own DEFAULTS."""
    return defaults[flag.name] if flag.value is None else flag.value


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


def host_options() -> dict[str, Any]:
    """The arguments of `distributed.processes.joined`."""
    return {name.removeprefix("host_"): flags.FLAGS[name].value for name in HOST_FLAGS}


def run_command(main: Callable[..., int | None], argv: Sequence[str]) -> None:
    """Parses the flags and runs a command's `main`; a mistake of the user ends in one message and exit code 1."""
    module = sys.modules[main.__module__]
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
            _check_flags(module)
            return main(rest[1:]) if takes_arguments else main()
        except (ValueError, OSError) as error:
            if TRACEBACK.value:
                raise
            _fail(f"{error}\n(--traceback shows where this came from)")
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            return 128 + signal.SIGINT

    app.run(guarded, argv=argv, flags_parser=_parse_flags)


def own_flags(module: ModuleType) -> list[flags.Flag]:
    """The flags that a command's module declares."""
    return [*flags.FLAGS.get_key_flags_for_module(module), flags.FLAGS[TRACEBACK.name]]


def _help(module: ModuleType) -> str:
    texts, defaults = getattr(module, "HELP", {}), getattr(module, "DEFAULTS", {})
    lines = [
        f"  --{flag.name}: {texts.get(flag.name, flag.help)}{_default(flag, defaults)}" for flag in own_flags(module)
    ]
    return "\n".join([module.__doc__ or "", "", "flags:", *lines])


def _default(flag: flags.Flag, defaults: Mapping[str, Any]) -> str:
    """A flag's default in brackets, the command's own before the flag's, where its help does not say it."""
    if flag.name not in defaults and (flag.default in (None, "", []) or "default" in flag.help):
        return ""
    of_flag = (flag.default_as_str or "").strip("'")
    return f" (default {defaults.get(flag.name, of_flag)})"


def _check_flags(module: ModuleType) -> None:
    """Refuses a flag that only other commands have, which else would silently do nothing, numbers that are none, and
    an empty --workdir or --output, which would be the current folder."""
    for flag in own_flags(module):
        for value in flag.value if isinstance(flag.value, list | tuple) else [flag.value]:
            if isinstance(value, float) and not math.isfinite(value):  # absl's ranges let NaN through
                _fail(f"--{flag.name}={value} must be a finite number")
            if isinstance(value, int) and abs(value) >= 2**63:
                _fail(f"--{flag.name}={value} must be below 2^63")
        if flag.present and flag.value == "" and flag.name in ("workdir", "output", "model", "path"):
            _fail(f"--{flag.name} is empty: leave it out, or give it a value")
    own = {flag.name for flag in own_flags(module)}
    for home, defined in flags.FLAGS.flags_by_module_dict().items():
        for flag in defined:
            if home.startswith("clip_jax.cli.") and flag.present and flag.name not in own:
                _fail(f"--{flag.name} is not a flag of this command\n--help lists the flags")


def _parse_flags(argv: Sequence[str]) -> list[str]:
    try:
        ARGV[:] = _find_config(argv)
        rest = flags.FLAGS(ARGV)
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
    return "unknown config key " + str(error.args[0]).replace("\n", ". ") + _other_sections()


def _other_sections() -> str:
    """Where a key of --config.SECTION.KEY=VALUE stands that its section does not have."""
    files = [argument.removeprefix("--config=") for argument in ARGV if argument.startswith("--config=")]
    try:
        sections = runpy.run_path(files[0])["get_config"]().to_dict()  # absl keeps none from before its mistake
    except Exception:  # a config with an argument, or something else
        return ""
    for argument in ARGV:
        section, _, key = argument.partition("=")[0].removeprefix("--config.").partition(".")
        if key and argument.startswith("--config.") and key not in sections.get(section, {}):
            homes = [f"{other}.{key}" for other, keys in sections.items() if isinstance(keys, dict) and key in keys]
            return f". It is a key of another section: {' or '.join(homes)}" if homes else ""
    return ""


def shipped_configs() -> list[str]:
    """The names that --config takes, without those that are `ablate`'s own."""
    names = (path.relative_to(CONFIGS).with_suffix("") for path in CONFIGS.rglob("*.py"))
    known = sorted(name.as_posix() for name in names if name.name not in ("__init__", "model_sizes"))
    return [name for name in known if not name.startswith("ablations/")]


def _find_config(argv: Sequence[str]) -> list[str]:
    """--config=tiny and --config tiny mean the shipped configs/tiny.py, as suites/paper means configs/suites/paper.py;
    what has a suffix, or is a file, is a path. It comes first, because its keys are flags once it is read."""
    program, *arguments = argv
    configs, others = [], []
    remaining = iter(arguments)
    for argument in remaining:
        name, _, value = argument.partition("=")
        if name != "--config":
            others.append(argument)
            continue
        if "=" not in argument:
            value = next(remaining, "")
        file = Path(value)
        if "." not in value and not file.is_file():
            file = CONFIGS / f"{value}.py"
            if not file.is_file():
                known = shipped_configs()
                meant = difflib.get_close_matches(value, known, n=1)
                _fail(
                    f"there is no shipped config {value!r}{f' (did you mean {meant[0]}?)' if meant else ''}: use one "
                    f"of {', '.join(known)}, or the path of a file"
                )
        if not file.is_file():
            _fail(f"there is no config file {value}")
        configs.append(f"--config={file}")
    return [program, *configs, *others]


def _fail(message: str) -> NoReturn:
    print(f"clip-jax: error: {message}", file=sys.stderr)
    sys.exit(1)
