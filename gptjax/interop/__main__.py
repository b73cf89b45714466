"""Writes a run or a checkpoint of others for transformers: python -m gptjax.interop export RUN OUT.

RUN is a run's folder, or hf:PATH, gguf:PATH, meta:PATH, tf:PATH. OUT is a folder that does not
exist yet. Another command, `show`, prints what a checkpoint is without reading its tensors.
"""

import contextlib
import signal
import sys
from collections.abc import Iterator

from gptjax.errors import EXIT_DONE, BadInput, OneLineParser, exit_code_of
from gptjax.process import quiet_libraries

ALWAYS = (
    "kind",
    "vocab_size",
    "context_length",
    "num_layers",
    "d_model",
    "num_heads",
    "num_kv_heads",
    "d_ff",
)


def main(arguments: list[str] | None = None) -> int:
    """The command line; the exit code."""
    quiet_libraries()
    return exit_code_of(lambda: _main(arguments))


def _main(arguments: list[str] | None) -> int:
    parser = OneLineParser(prog="python -m gptjax.interop", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    export = commands.add_parser("export", help="write a folder that transformers loads")
    export.add_argument("run", metavar="RUN", help="a run's folder, or hf:, gguf:, meta:, tf:PATH")
    export.add_argument("out", metavar="OUT", help="a folder that does not exist yet")
    export.add_argument("--family", default="", help="such as llama (default: the first that fits)")
    export.add_argument("--dtype", default="float32", help="float32, bfloat16 or float16")
    export.add_argument("--step", type=int, help="a checkpoint of the run (default: the newest)")
    show = commands.add_parser("show", help="print what a checkpoint is")
    show.add_argument("source", metavar="SOURCE", help="hf:PATH, gguf:PATH, meta:PATH or tf:PATH")
    given = parser.parse_args(arguments)
    return _show(given.source) if given.command == "show" else _export(given)


def _export(given) -> int:
    from gptjax.evaluation.forms import form_of_checkpoint
    from gptjax.interop.exporting import check_out, choose, export
    from gptjax.interop.loading import SOURCES, load, open_checkpoint

    check_out(given.out, given.dtype)
    if given.run.partition(":")[0] in SOURCES and ":" in given.run:
        if given.step is not None:
            raise BadInput(f"--step is of a run's folder, and {given.run} is none")
        choose(open_checkpoint(given.run).config, given.family)
        found = load(given.run)
        config, params, tokenizer = found.config, found.params, found.tokenizer
        vocabulary = form = None
        if config.kind == "encoder_decoder":
            form = form_of_checkpoint(config, tokenizer, given.run)
    else:
        import gptjax

        trained = gptjax.load(given.run, step=given.step)
        config, params, tokenizer = trained.config, trained.params, trained.tokenizer
        vocabulary = trained.experiment.vocabulary(tokenizer)
        form = trained.form if config.kind == "encoder_decoder" else None
    if tokenizer is not None and tokenizer.kind == "symbols":
        print("symbols have no tokenizer that others read: the model goes without", file=sys.stderr)
        tokenizer = None
    with _stopped_by_sigterm():
        family = export(
            config,
            params,
            given.out,
            tokenizer=tokenizer,
            vocabulary=vocabulary,
            form=form,
            family=given.family,
            dtype=given.dtype,
        )
    print(f"{given.out}: {family.written(config)['architectures'][0]} in {given.dtype}")
    return EXIT_DONE


@contextlib.contextmanager
def _stopped_by_sigterm() -> Iterator[None]:
    """SIGTERM ends the block as Ctrl-C does, so that nothing half-written stays."""

    def stop(number: int, frame) -> None:
        raise SystemExit(128 + number)

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before or signal.SIG_DFL)


def _show(source: str) -> int:
    import math

    from gptjax.interop.fields import function_of, setting
    from gptjax.interop.loading import checked, open_checkpoint, read_words
    from gptjax.interop.stores import reading

    found = open_checkpoint(source)
    leaves = checked(found, found.config)
    store, config = found.store, found.config
    plain = type(config)()
    names = {piece.name for leaf in leaves.values() for piece in leaf.pieces}
    count = sum(math.prod(leaf.shape) for leaf in leaves.values())
    dtypes = ", ".join(sorted({store.dtype(name) for name in names}))
    print(f"{found.family.name}, {len(store.shapes)} tensors of {dtypes}, {count:,} parameters")
    try:
        with reading(found.path):
            words = read_words(found)
        print(f"tokenizer: {f'{words.kind}, {words.vocab_size} ids' if words else 'none'}")
    except BadInput as error:
        print(f"tokenizer: not read: {error}")
    sizes = {"num_kv_heads": config.kv_heads, "d_ff": config.ff_size}
    if config.kind == "encoder_decoder":
        sizes["decoder_layers"] = config.decoder.num_layers
    for name in function_of(config):
        value = sizes.get(name, setting(config, name))
        if name in ALWAYS or value != setting(plain, name):
            print(f"  model.{name} = {value}")
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
