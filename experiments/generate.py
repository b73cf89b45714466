"""Text from a model: `python experiments/generate.py --from=runs/quickstart --prompt="def "`.

`--from` names a run's folder, or the weights of others: `hf:PATH` (a folder in Hugging Face's
format), `gguf:PATH`, `meta:PATH` or `tf:PATH`. Models that fill blanks want them in the prompt, as
their vocabulary shows them (<extra_id_0>, [MASK]); what fills them is told, and the text with it.
Text of others is written as it grows; tables go to stdout too, timings to stderr. Whatever is wrong
becomes one line and exit code 2.
"""

import contextlib
import dataclasses
import io
import os
import signal
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parent.parent)  # the checkout, not this folder

from gptjax.errors import EXIT_DONE, BadInput, exit_code_of, nearest, printable

FORMATS = ("hf", "gguf", "meta", "tf")  # of gptjax.interop
MOST_TOKENS = 2**20  # of a continuation: room for all is made before the first
TOP = 10  # tokens in a table of what is likely


def option(default, text: str):
    """A field of the command line."""
    return field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Options:
    """Text from a model: one trained here, or somebody else's weights."""

    source: str = option("", "a run's folder, or hf:, gguf:, meta: or tf: and a path")
    prompt: str = option("", "what is continued, or has blanks; empty: the start of a document")
    prompts: str = option("", "a file of prompts, one a line, or .jsonl with strings or objects")
    num_samples: int = option(1, "continuations of each prompt")
    max_tokens: int = option(256, "the most tokens of a continuation")
    temperature: float = option(0.7, "0 takes the likeliest token each time")
    top_k: int = option(0, "draw among so many of the likeliest; 0: all")
    top_p: float = option(0.95, "draw among the likeliest of this mass")
    repetition_penalty: float = option(1.0, "above 1 makes tokens rarer that were there before")
    beams: int = option(0, "search for the likeliest with so many beams; 0: draw")
    length_penalty: float = option(0.6, "of beams: 0 ranks by probability, more favours long ones")
    stop: tuple[str, ...] = option((), "a string before which a text ends; repeatable")
    seed: int = option(0, "of the draws")
    explain: Literal["no", "next", "steps"] = option(
        "no", "tables of the likeliest tokens: next after a prompt (--explain alone), or all steps"
    )
    output: str = option("", "a JSON-lines file with every continuation")
    begin: Literal["separator", "none"] = option(
        "separator", "the token between documents before every prompt, or none"
    )
    batch_size: int = option(16, "how many texts are decoded together")
    dtype: Literal["as_saved", "float32", "bfloat16"] = option("as_saved", "what is computed in")
    step: int = option(-1, "of a run: its checkpoint of this step; -1: the newest")

    def validate(self) -> None:
        """One clear line for what cannot be, before anything is read or computed."""
        if not self.source:
            raise BadInput(
                "--from is missing: give a run's folder, or weights of others as hf:PATH, gguf:PATH"
            )
        if self.prompt and self.prompts:
            raise BadInput("--prompt and --prompts are both given: give one")
        for name in ("num_samples", "max_tokens", "batch_size"):
            if not 1 <= getattr(self, name) < 2**31:
                raise BadInput(f"--{name}={getattr(self, name)}: give 1 or more")
        if self.max_tokens > MOST_TOKENS:
            raise BadInput(f"--max_tokens={self.max_tokens}: give at most {MOST_TOKENS}")
        if not 0 <= self.beams < 2**16:
            raise BadInput(f"--beams={self.beams}: give 0 (draw) or more")
        if not 0 <= self.seed < 2**32:  # beyond, the keys of jax repeat
            raise BadInput(f"--seed={self.seed}: give 0 or more, below {2**32}")
        if not 0 <= self.temperature < float("inf"):
            raise BadInput(f"--temperature={self.temperature}: give 0 (the likeliest) or more")
        if not 0 <= self.top_k < 2**31:
            raise BadInput(f"--top_k={self.top_k}: give 0 (all) or more")
        if not 0 < self.top_p <= 1:
            raise BadInput(f"--top_p={self.top_p}: give a number above 0 and up to 1")
        if not 0 < self.repetition_penalty < float("inf"):
            raise BadInput(
                f"--repetition_penalty={self.repetition_penalty}: give a number above 0; 1 is none"
            )
        if "" in self.stop:
            raise BadInput("--stop is empty: give the string before which a text ends")
        if self.begin == "none" and not self.prompt and not self.prompts:
            raise BadInput("--begin=none leaves nothing to begin with: give a --prompt")
        self._check_beams()
        self._check_files()

    def _check_beams(self) -> None:
        if not self.beams:
            return
        for name in ("stop", "explain", "repetition_penalty"):
            if getattr(self, name) != _default(name):
                raise BadInput(f"--{name} does not go with --beams: leave one out")
        if self.num_samples > self.beams:
            raise BadInput(
                f"--num_samples={self.num_samples} is more than the {self.beams} beams there are"
            )
        if not abs(self.length_penalty) <= 10:
            raise BadInput(f"--length_penalty={self.length_penalty}: give a number from -10 to 10")

    def _check_files(self) -> None:
        for name in ("source", "prompt", "prompts", "output", *("stop",) * bool(self.stop)):
            text = "".join(getattr(self, name))
            try:
                text.encode("utf-8")
            except UnicodeEncodeError:
                option_name = "from" if name == "source" else name
                raise BadInput(f"--{option_name} is {text!r}: give UTF-8 text") from None
        if self.output:
            _check_output(Path(self.output).expanduser().absolute(), self.output)


def _check_output(path: Path, given: str) -> None:
    """BadInput for what is no plain file's name in a folder that can be written into."""
    try:
        plain = path.is_file() and not path.is_symlink() if os.path.lexists(path) else True
        writable = path.parent.is_dir() and os.access(path.parent, os.W_OK)
        os.path.getsize(path) if path.exists() else None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise BadInput(f"--output={given[:80]} cannot be written: {reason}") from None
    if not plain or not writable:
        raise BadInput(
            f"--output={given} cannot be written: give the name of a plain file in a folder that "
            "exists and can be written into"
        )


def _default(name: str):
    return next(f.default for f in dataclasses.fields(Options) if f.name == name)


def parse(arguments: list[str]) -> Options:
    """The options, typed; BadInput in one line, SystemExit(0) after --help."""
    from typing import Annotated

    import tyro

    from gptjax.command_line import one_line

    def name_of(f) -> str:
        return "from" if f.name == "source" else f.name

    known = [name_of(f) for f in dataclasses.fields(Options)]
    for argument in arguments:
        name = argument.removeprefix("--").partition("=")[0].replace("-", "_")
        if argument.startswith("--") and name not in (*known, "help"):
            near = nearest(name, known, 1)
            hint = f"; did you mean --{near[0]}?" if near else "; --help lists them"
            raise BadInput(f"unknown option '--{name}'{hint}")
    # A bare --explain is of the next tokens.
    arguments = [
        "--explain=next" if one == "--explain" and after.startswith("--") else one
        for one, after in zip(arguments, [*arguments, "--"][1:], strict=True)
    ]
    marks = {
        f.name: tyro.conf.arg(name=name_of(f), help=f.metadata["help"])
        for f in dataclasses.fields(Options)
    }
    typed = [(f.name, Annotated[f.type, marks[f.name]], f) for f in dataclasses.fields(Options)]
    cls = dataclasses.make_dataclass("Options", typed, bases=(Options,), frozen=True)
    cls.__doc__ = Options.__doc__
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                cls,
                args=arguments,
                prog="generate.py",
                use_underscores=True,
                config=(tyro.conf.UseAppendAction, tyro.conf.FlagConversionOff),
            )
    except SystemExit as stop:
        if stop.code == EXIT_DONE:
            raise
    raise BadInput(one_line(complaint.getvalue()))


def load_source(text: str, dtype: str = "as_saved", step: int = -1):
    """What `--from` names: an object with config, params and tokenizer.

    BadInput for a folder that is no run, a format that is none, or weights that cannot be read.
    """
    prefix, colon, _ = text.partition(":")
    if colon and prefix in FORMATS:
        if step >= 0:
            raise BadInput(f"--step is of a run, and {text} is none")
        from gptjax import interop

        return interop.load(text, **({} if dtype == "as_saved" else {"dtype": dtype}))
    if colon and not Path(text).expanduser().exists() and "/" not in prefix:
        raise BadInput(
            f"--from={text}: '{prefix}:' is no source; give a run's folder, "
            f"{' or '.join(f'{name}:PATH' for name in FORMATS)}"
        )
    from gptjax.trained import load

    run = load(text, step=step if step >= 0 else None)
    if dtype == "as_saved":
        return run
    model = dataclasses.replace(run.config, compute_dtype=dtype)
    return dataclasses.replace(run, experiment=dataclasses.replace(run.experiment, model=model))


def main(arguments: list[str] | None = None) -> int:
    """The exit code: 0 done, 2 bad input, 130 interrupted, 1 otherwise."""
    from gptjax.process import quiet_libraries

    quiet_libraries()
    return exit_code_of(lambda: _main(sys.argv[1:] if arguments is None else arguments))


def _main(arguments: list[str]) -> int:
    options = parse(arguments)
    options.validate()
    if hasattr(sys.stdout, "reconfigure"):  # a terminal of another encoding gets escapes
        sys.stdout.reconfigure(errors="backslashreplace")
    from gptjax.evaluation.texts import encoded, read_prompts
    from gptjax.process import use_compilation_cache

    given = [options.prompt]
    if options.prompts:
        given = read_prompts(Path(options.prompts).expanduser())
    use_compilation_cache()
    source = load_source(options.source, options.dtype, options.step)
    form = _form(source, given)
    if form is not None:
        texts = _answer(source, form, given, options)
    elif options.beams:
        texts = _search(source, encoded(source, given, options.begin), options)
    else:
        texts = _draw(source, encoded(source, given, options.begin), options)
    if options.output:
        _write(Path(options.output).expanduser(), texts)
    return EXIT_DONE


def _form(source, given):
    """How prompts are put to a model (`evaluation.forms`); None: it goes on with them."""
    from gptjax.trained import Trained

    if isinstance(source, Trained):
        return source.form_for(given)
    from gptjax.evaluation.forms import form_of_checkpoint

    return form_of_checkpoint(source.config, source.tokenizer, source.source)


def _answer(source, form, given, options: Options) -> list:
    """Answers of a model that fills blanks, or that reads its prompt both ways and goes on."""
    from gptjax.evaluation.blanks import CANDIDATES, Asked, answers, blank_lines
    from gptjax.evaluation.generate import Clock
    from gptjax.evaluation.texts import show_steps

    goes_on = form.kind == "continuation"
    if options.stop and not goes_on:
        raise BadInput("--stop is of text that goes on, and this model fills blanks; leave it out")
    if (form.kind == "blocks" and options.explain != "no") or (
        form.kind in ("spans", "whole") and options.explain == "next"
    ):
        raise BadInput(f"--explain={options.explain} does not tell of blanks of this model")
    asked = Asked(source.config, source.params, form)
    prompts = [
        form.prompt(one, options.begin) if isinstance(one, str) else form.asked(one)
        for one in given
    ]
    if goes_on:
        return (_search if options.beams else _draw)(asked, prompts, options)
    clock = Clock()
    more = {"beams": options.beams, "length_penalty": options.length_penalty}
    more |= {"num_samples": options.num_samples, "batch_size": options.batch_size}
    more |= {"clock": clock, "top": _top(source, options)}
    texts = answers(asked, prompts, options.max_tokens, _sampling(options), **more)
    for text in texts:
        if len(texts) > 1:
            _say(f"{_head(text, options.num_samples)} {text.prompt.text}\n")
        _say("\n".join([*blank_lines(asked, text, more["top"] or CANDIDATES), text.text, ""]))
        if options.explain != "no" and form.kind != "masks":
            show_steps(asked, text)
    if clock.seconds:
        _report(sum(len(text.tokens) for text in texts), clock)
    return texts


def _top(source, options: Options) -> int:
    return min(TOP, source.config.vocab_size) if options.explain != "no" else 0


def _sampling(options: Options):
    from gptjax.evaluation.sampling import Sampling

    names = ("temperature", "top_k", "top_p", "repetition_penalty", "seed")
    return Sampling(*(getattr(options, name) for name in names))


def _draw(source, prompts, options: Options) -> list:
    from gptjax.evaluation.generate import Clock
    from gptjax.evaluation.texts import generate_texts, show_next, show_steps

    alone, clock = len(prompts) * options.num_samples == 1, Clock()
    only_next = options.explain == "next"
    if alone and not only_next:
        _say(prompts[0].text)
    texts = generate_texts(
        source,
        prompts,
        1 if only_next else options.max_tokens,
        _sampling(options),
        num_samples=1 if only_next else options.num_samples,
        stops=options.stop,
        on_text=(lambda _, piece: _say(piece)) if alone and not only_next else None,
        top=_top(source, options),
        batch_size=options.batch_size,
        clock=clock,
    )
    if alone and not only_next:
        _say("\n")
    for text in texts:
        if not alone and not only_next:
            _show(text, options.num_samples)
        if only_next:
            show_next(source, text)
        elif options.explain == "steps":
            show_steps(source, text)
    _report(sum(len(text.tokens) for text in texts), clock)
    return texts


def _search(source, prompts, options: Options) -> list:
    from gptjax.evaluation.texts import search_texts

    texts = search_texts(
        source,
        prompts,
        options.max_tokens,
        beams=options.beams,
        length_penalty=options.length_penalty,
        num_samples=options.num_samples,
        batch_size=options.batch_size,
    )
    for text in texts:
        _show(text, options.num_samples)
    return texts


def _say(text: str) -> None:
    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def _show(text, samples: int) -> None:
    _say(f"{_head(text, samples)}\n{text.prompt.text}{text.text}\n")


def _head(text, samples: int) -> str:
    head = f"--- sample {text.sample + 1}" if samples > 1 else "---"
    return head if text.score is None else f"{head} score {text.score:.4f}"


def _report(tokens: int, clock) -> None:
    later = tokens - min(clock.first_tokens, tokens)
    rate = f", then {later / clock.seconds:.1f} tokens/s" if later and clock.seconds else ""
    print(
        f"{tokens} tokens: the first after {clock.first_seconds:.1f} s, compilation with it{rate}",
        file=sys.stderr,
    )


def _write(path: Path, texts: list) -> None:
    import json

    from gptjax.training.workdir import write_whole

    lines = (json.dumps(text.record(), ensure_ascii=False) + "\n" for text in texts)
    write_whole(path, "".join(lines).encode("utf-8", "replace"))


if __name__ == "__main__":
    from gptjax import allocator

    allocator.tune()  # must come before jax is imported
    code = main()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a late Ctrl-C would turn the code into another
    sys.exit(code)
