"""The command line over experiments: names, dotted overrides, --list, --dry-run, --help.

Overrides are parsed by tyro over the Experiment's own dataclasses, so they are typed and --help
lists every field. Whatever is wrong becomes one line and exit code 2.
"""

import contextlib
import dataclasses
import io
import math
import os
import re
import sys
from dataclasses import dataclass

from gptjax.errors import (
    EXIT_BAD_INPUT,
    EXIT_DONE,
    EXIT_PREEMPTED,
    BadInput,
    exit_code_of,
    nearest,
)
from gptjax.process import quiet_libraries, use_compilation_cache
from gptjax.training.signals import LeaveAtOnce, Preempted

USAGE = """usage: python experiments/run.py --exp=NAME [--part.field=value ...] [options]

options:
  --exp NAME       the experiment to run; an unambiguous suffix of its name will do
  --list           all experiments with parameters, tokens and FLOPs
  --dry-run        the plan: config, parameters, FLOPs, memory and layout on the mesh, time
  --workdir DIR    where the run lives (default runs/NAME); a run that stands there goes on
  --init-from SRC  begin with the weights and the model of a checkpoint of others: hf:FOLDER,
                   gguf:FILE, meta:FOLDER or tf:FOLDER; a run that has begun goes on without it
  --objective NAME what is minimised in the place of the experiment's own objective, such as ul2;
                   its fields are set by --objective.field=value
  --fork           go on from the workdir's newest checkpoint with a changed config; in a sweep's
                   folder with the points of a changed sweep, which leaves the old ones there
  --exp NAME --help    every field of that experiment with its value

options of a sweep (fields set by --part.field=value are those of its base experiment):
  --only TEXT      the points whose name holds TEXT, or whose row holds FIELD=VALUE; repeatable
  --status         where the sweep in the workdir stands
  --launcher KIND  where its workers live: local (default), here, ray or slurm
  --workers N      how many (default: the device decides)
  --retry-failed   try points again that have failed
  --minutes N      plan it for so many minutes on this machine; steps are measured before, once
                   a day
  --remeasure      forget the times measured so far, as after other work had slowed the machine
  --budget FLOPS   plan it for so many FLOPs in all, such as 1e14
  --tune           find learning rates and batches first, by short runs of some sizes
"""

FLAGS = ("list", "dry-run", "fork", "help", "status", "retry-failed", "tune", "remeasure")
VALUES = ("exp", "workdir", "init-from", "objective", "launcher", "workers", "minutes", "budget")
LISTS = ("only",)
OF_SWEEPS = (
    "status",
    "retry-failed",
    "launcher",
    "workers",
    "only",
    "minutes",
    "budget",
    "tune",
    "remeasure",
)
OPTIONS = (*FLAGS, *VALUES, *LISTS)


@dataclass(frozen=True)
class Command:
    """The options of one call; `overrides` go to the experiment's fields."""

    exp: str = ""
    workdir: str = ""
    init_from: str = ""
    objective: str = ""
    list: bool = False
    dry_run: bool = False
    fork: bool = False
    help: bool = False
    status: bool = False
    retry_failed: bool = False
    launcher: str = ""
    workers: int = 0
    minutes: float = 0.0
    budget: float = 0.0
    tune: bool = False
    remeasure: bool = False
    only: tuple[str, ...] = ()
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
        if not argument.startswith("--") or option not in OPTIONS:
            overrides.append(argument)
            continue
        if option in found and option not in LISTS:
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
        found[option] = (*found.get(option, ()), value) if option in LISTS else value
    if "workers" in found:
        if not str(found["workers"]).isdecimal() or not 0 < int(found["workers"]) < 4096:
            raise BadInput(f"--workers={found['workers']} is no number of workers; give 1 or more")
        found["workers"] = int(found["workers"])
    for name, unit in (("minutes", "minutes"), ("budget", "FLOPs")):
        if name in found:
            found[name] = _positive(name, str(found[name]), unit)
    fields = {name.replace("-", "_"): value for name, value in found.items()}
    return Command(**fields, overrides=tuple(overrides))


def _positive(name: str, text: str, unit: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise BadInput(f"--{name}={text} is no number of {unit}; give a number above 0")
    return value


def override(
    experiment, arguments: tuple[str, ...], show_help: bool = False, name: str = "", about: str = ""
):
    """The experiment with dotted fields replaced, typed as they are; BadInput in one line.

    `name` and `about` head the help, by default with the experiment's own.
    """
    import tyro

    _check_names(experiment, arguments)
    # The name is the registered one, so it is no option.
    fields = dataclasses.fields(experiment)[1:]
    # Of parts of several kinds that one which the experiment has.
    kinds = [(f.name, type(getattr(experiment, f.name))) for f in fields]
    cls = dataclasses.make_dataclass("Fields", kinds, frozen=True)
    cls.__doc__ = about or type(experiment).__doc__
    args = [*arguments, "--help"] if show_help else list(arguments)
    complaint = io.StringIO()
    with contextlib.ExitStack() as stack:
        if not show_help:
            stack.enter_context(contextlib.redirect_stderr(complaint))
        try:
            chosen = tyro.cli(
                cls,
                default=cls(*(getattr(experiment, f.name) for f in fields)),
                args=args,
                prog=f"run.py --exp={name or experiment.name}",
                use_underscores=True,
                config=(tyro.conf.FlagConversionOff, tyro.conf.AvoidSubcommands),
            )
            return dataclasses.replace(experiment, **vars(chosen))
        except SystemExit as stop:
            if stop.code == 0:
                raise
    raise BadInput(one_line(complaint.getvalue()))


def _check_names(experiment, arguments: tuple[str, ...]) -> None:
    """Refuse the first option that is no field of the experiment, or is given twice."""
    from gptjax.config_tree import field_names
    from gptjax.suggest import unknown_field

    known, given = set(field_names(experiment)), set()
    for argument in arguments:
        if not argument.startswith("--"):
            continue
        typed = argument[2:].partition("=")[0]
        name = typed.replace("-", "_")
        if name == "name":
            raise BadInput(
                "--name is no option: an experiment is called as it is registered; --workdir=DIR "
                "says where its run lives"
            )
        if name not in known:
            raise _unknown_option(typed, known) or unknown_field(name, experiment)
        if name in given:
            raise BadInput(f"--{name} is given twice")
        given.add(name)


def _unknown_option(typed: str, known: set[str]) -> BadInput | None:
    """The error for a name that resembles an option of ours more than a field."""
    if not typed:
        return BadInput("'--' is followed by no name; a field is set by --part.field=value")
    positive = typed.removeprefix("no-").removeprefix("no_")
    if positive != typed and positive.replace("_", "-") in FLAGS:
        return BadInput(f"unknown option '--{typed}'; leave --{positive} out, it is off by itself")
    field = positive.replace("-", "_")
    if positive != typed and field in known:
        return BadInput(f"unknown option '--{typed}'; give --{field}=...")
    # A field may have an option's letters (eps, exp): only what is very like one is taken for it.
    near = nearest(typed.replace("_", "-"), OPTIONS, 1, 0.7) if "." not in typed else []
    return BadInput(f"unknown option '--{typed}'; did you mean --{near[0]}?") if near else None


def one_line(box: str) -> str:
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
    stray = re.fullmatch(r"Unrecognized options?: (.*)", " ".join(lines))
    if stray:
        return f"'{stray[1]}' is no option and no value; a field is set by --part.field=value"
    return " ".join(lines) or "the arguments cannot be read; --help lists the fields"


def show_list() -> int:
    """A line for each experiment and each sweep, by the module of `experiments` they stand in.

    Those that are broken are named on stderr. The exit code.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from gptjax import registry
    from gptjax.scaling.flops import count_parameters
    from gptjax.training.metrics import short

    table, many = (Table(box=box.SIMPLE_HEAD, pad_edge=False) for _ in range(2))
    for t, heads in ((table, ("experiment", "what it is")), (many, ("sweep", "what it is"))):
        for name in heads:
            t.add_column(name, overflow="fold")
    for name in ("parameters", "tokens", "FLOPs"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("points", "parameters", "FLOPs"):
        many.add_column(name, justify="right", no_wrap=True)
    failed = [f"{module} cannot be imported: {why}" for module, why in registry.broken().items()]
    for family, members in registry.families().items():
        runs, sweeps = [], []
        for name in members:
            try:
                e, what = registry.get(name), registry.describe(name)
                if isinstance(e, registry.Sweep):
                    sizes = [point.parameters for point in e.points]
                    sizes = f"{short(min(sizes))} to {short(max(sizes))}"
                    sweeps.append((f"  {name}", what, str(len(e.points)), sizes, short(e.flops)))
                else:
                    total = count_parameters(e.model).total
                    runs.append((f"  {name}", what, short(total), short(e.tokens), short(e.flops)))
            except BadInput as error:
                failed.append(f"{name}: {error}")
        for t, rows in ((table, runs), (many, sweeps)):
            for row in [(family, registry.describe_family(family)), *rows] if rows else []:
                t.add_row(*row, style="bold" if row[0] == family else None)
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console = Console(highlight=False, markup=False, width=120)
    console.print(table)
    if many.row_count:
        console.print(many)
    for line in failed:
        print(f"error: {line}", file=sys.stderr)
    return EXIT_BAD_INPUT if failed else EXIT_DONE


def _meant(argument: str) -> str:
    """A hint for who leaves out the dashes."""
    name = argument.lstrip("-").removeprefix("exp=")
    return "" if argument.startswith("--") else f"; did you mean --exp={name}?"


def run_sweep(sweep, command: Command) -> int:
    """Do what the command says of a sweep, with overrides of its base experiment."""
    from gptjax.sweeps.command import run_command
    from gptjax.sweeps.sweep import FACTS

    swept = {key for row in sweep.grid for key in row}
    for argument in command.overrides:
        field = argument.removeprefix("--").partition("=")[0].replace("-", "_")
        if field in swept:
            raise BadInput(
                f"--{field} is set by the grid of {sweep.name}, point by point; "
                f"--only={field.rsplit('.', 1)[-1]}=VALUE chooses among its points"
            )
    about = (
        f"{sweep.name} is a sweep of {len(sweep.grid)} points. The fields below are those of its "
        f"base experiment, {sweep.base.name}, which all points begin from. Its grid sets "
        f"{', '.join(sorted(swept - set(FACTS))) or 'none of them'} point by point: these are not "
        "to be given here."
    )
    base = sweep.base.with_objective(command.objective)
    base = override(base, command.overrides, command.help, sweep.name, about)
    sweep = sweep.planned(base)
    sweep.validate()
    use_compilation_cache()
    return run_command(sweep, command)


def run(command: Command) -> int:
    """Do what the command says; the exit code, or BadInput for whatever the user can mend."""
    if hasattr(sys.stdout, "reconfigure"):  # a terminal of another encoding gets escapes
        sys.stdout.reconfigure(errors="backslashreplace")
    if command.workdir.startswith("~"):  # no shell expands it behind an equals sign
        command = dataclasses.replace(command, workdir=os.path.expanduser(command.workdir))
    if command.workdir.startswith("~"):
        raise BadInput(f"--workdir={command.workdir} is of a user whose home is not known")
    if command.list:
        if command.overrides:
            raise BadInput(f"--list takes nothing else, and '{command.overrides[0]}' is given")
        return show_list()
    if not command.exp:
        if command.help:
            print(USAGE, end="")
            return EXIT_DONE
        raise BadInput(
            "--exp=NAME is missing; --list shows the names, --help the options"
            + "".join(_meant(argument) for argument in command.overrides[:1])
        )
    from gptjax import registry

    found = registry.get(command.exp)
    if command.help:
        print(USAGE)
    if isinstance(found, registry.Sweep):
        if command.init_from:
            raise BadInput(f"--init-from belongs to a single run, and {found.name} is a sweep")
        return run_sweep(found, command)
    for name in OF_SWEEPS:
        if getattr(command, name.replace("-", "_")):
            raise BadInput(f"--{name} belongs to a sweep, and {found.name} is a single run")
    experiment = override(found.with_objective(command.objective), command.overrides, command.help)
    if command.init_from:
        from gptjax.interop.start import starting_from
        from gptjax.run_folder import begun_in

        begun = begun_in(command.workdir or os.path.join("runs", experiment.name))
        given = [argument[2:].partition("=")[0] for argument in command.overrides]
        experiment = starting_from(experiment, command.init_from, given, begun)
    experiment.validate()
    from gptjax.parallel.hosts import start_hosts

    start_hosts()
    use_compilation_cache()
    if command.dry_run:
        from gptjax.plan import make_plan, show
        from gptjax.registry import documentation

        print(documentation(command.exp))
        show(make_plan(experiment))
        return EXIT_DONE
    from gptjax.runs import fit

    fit(experiment, command.workdir or None, fork=command.fork, init_from=command.init_from)
    return EXIT_DONE


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 done, 2 bad input, 75 stopped and saved, 130 interrupted, 1 otherwise."""
    arguments = sys.argv[1:] if arguments is None else arguments
    quiet_libraries()
    return exit_code_of(lambda: _main(arguments))


def _main(arguments: list[str]) -> int:
    command = parse(arguments)
    trains = command.exp and not (command.list or command.help or command.dry_run)
    with LeaveAtOnce() if trains else contextlib.nullcontext():
        try:
            return run(command)
        except Preempted as stopped:
            print(f"{stopped}; the same command goes on from there", file=sys.stderr)
            return EXIT_PREEMPTED
