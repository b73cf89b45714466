"""The command line over experiments: names, dotted overrides, --list, --dry-run, --help.

Overrides are parsed by tyro over the Experiment's own dataclasses, so they are typed and --help
lists every field. Whatever is wrong becomes one line and exit code 2.
"""

import contextlib
import dataclasses
import io
import logging
import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from gptjax.errors import EXIT_BAD_INPUT, EXIT_PREEMPTED, BadInput, did_you_mean

USAGE = """usage: python experiments/run.py --exp=NAME [--part.field=value ...] [options]

options:
  --exp NAME       the experiment to run; an unambiguous suffix of its name will do
  --list           all experiments with parameters, tokens and FLOPs
  --dry-run        the plan: config, parameters, FLOPs, memory and layout on the mesh, time
  --workdir DIR    where the run lives (default runs/NAME); a run that stands there goes on
  --fork           go on from the workdir's newest checkpoint with a changed config
  --exp NAME --help    every field of that experiment with its value
"""

FLAGS = ("list", "dry-run", "fork", "help")
VALUES = ("exp", "workdir")


@dataclass(frozen=True)
class Command:
    """The options of one call; `overrides` go to the experiment's fields."""

    exp: str = ""
    workdir: str = ""
    list: bool = False
    dry_run: bool = False
    fork: bool = False
    help: bool = False
    overrides: tuple[str, ...] = ()


def parse(arguments: list[str]) -> Command:
    """Split our own options from the overrides of fields."""
    found: dict[str, object] = {}
    overrides = []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "-h":
            argument = "--help"
        name, equals, value = argument.removeprefix("--").partition("=")
        option = name.replace("_", "-")
        if not argument.startswith("--") or (option not in FLAGS and option not in VALUES):
            overrides.append(argument)
            continue
        if option in found:
            raise BadInput(f"--{option} is given twice")
        if option in FLAGS:
            if equals:
                raise BadInput(f"--{option} takes no value")
            found[option] = True
            continue
        if not equals and rest and not rest[0].startswith("--"):
            value = rest.pop(0)
        if not value:  # an unset variable of the shell is no wish for the default
            raise BadInput(f"--{option} needs a value: --{option}=...")
        found[option] = value
    fields = {name.replace("-", "_"): value for name, value in found.items()}
    return Command(**fields, overrides=tuple(overrides))


def override(experiment, arguments: tuple[str, ...], show_help: bool = False):
    """The experiment with dotted fields replaced, checked; BadInput in one line."""
    import tyro

    from gptjax.experiment import field_names, unknown_field

    known, given = set(field_names(type(experiment))), set()
    for argument in arguments:
        if argument.startswith("--"):
            name = argument[2:].partition("=")[0].replace("-", "_")
            if name not in known:
                if "." not in name:
                    near = did_you_mean(name, [*FLAGS, *VALUES])
                    if near:
                        raise BadInput(f"unknown option '--{name}'{near}")
                raise unknown_field(name)
            if name in given:
                raise BadInput(f"--{name} is given twice")
            given.add(name)
    args = [*arguments, "--help"] if show_help else list(arguments)
    complaint = io.StringIO()
    with contextlib.ExitStack() as stack:
        if not show_help:
            stack.enter_context(contextlib.redirect_stderr(complaint))
        try:
            return tyro.cli(
                type(experiment),
                default=experiment,
                args=args,
                prog=f"run.py --exp={experiment.name}",
                use_underscores=True,
                config=(tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands),
            )
        except SystemExit as stop:
            if stop.code == 0:
                raise
    raise BadInput(_one_line(complaint.getvalue()))


def _one_line(box: str) -> str:
    """The first paragraph of an error that was drawn as a box."""
    lines, boxed = [], "╭" in box
    for line in box.splitlines():
        text = re.sub(r"\x1b\[[0-9;]*m", "", line).strip("│ \n")
        if text.startswith("╭"):
            continue
        if len(text) > 2 and not text.strip("-") and not boxed:
            lines, boxed = [], True  # drawn with plain signs, the title stands above a ruler
        elif text.startswith(("──", "╰", "---")):
            break
        else:
            lines.append(text)
    return " ".join(lines) or "the arguments cannot be read; --help lists the fields"


def show_list() -> None:
    """A line for each experiment."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from gptjax import registry
    from gptjax.scaling.flops import count_flops, count_parameters
    from gptjax.training.metrics import short

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("experiment", "what it is"):
        table.add_column(name, overflow="fold")
    for name in ("parameters", "tokens", "FLOPs"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in registry.names():
        e = registry.get(name)
        flops = count_flops(e.model, e.data.sequence_length).training * e.tokens
        total = count_parameters(e.model).total
        table.add_row(name, registry.describe(name), short(total), short(e.tokens), short(flops))
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=120)
    console.print(table)


def use_compilation_cache() -> None:
    """Keep compiled programs between starts, beside the prepared corpora."""
    import jax

    root = Path(os.environ.get("GPTJAX_CACHE") or Path.home() / ".cache" / "gptjax")
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(root / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def run(command: Command) -> None:
    """Do what the command says; BadInput for whatever the user can mend."""
    if command.list:
        return show_list()
    if not command.exp:
        if command.help:
            print(USAGE, end="")
            return None
        raise BadInput("--exp=NAME is missing; --list shows the names, --help the options")
    from gptjax import registry
    from gptjax.parallel.hosts import start_hosts

    experiment = registry.get(command.exp)
    if command.help:
        print(USAGE)
    experiment = override(experiment, command.overrides, command.help)
    experiment = dataclasses.replace(experiment, name=registry.resolve(command.exp))
    experiment.validate()
    start_hosts()
    use_compilation_cache()
    if command.dry_run:
        from gptjax.plan import make_plan, show

        return show(make_plan(experiment))
    from gptjax.runs import fit

    fit(experiment, command.workdir or None, fork=command.fork)
    return None


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 done, 2 bad input, 75 stopped and saved, 1 anything else."""
    arguments = sys.argv[1:] if arguments is None else arguments
    # orbax logs whole tracebacks of failures that reach us as errors and become one line.
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
    try:
        run(parse(arguments))
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except SystemExit as stop:
        return stop.code or 0
    except KeyboardInterrupt:
        print("interrupted at once: what was saved before is kept", file=sys.stderr)
        return 130
    except Exception as error:
        if type(error).__name__ != "Preempted":
            raise
        print(f"{error}; the same command goes on from there", file=sys.stderr)
        return EXIT_PREEMPTED
    return 0
