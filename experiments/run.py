"""Run an experiment by name: `python experiments/run.py --exp=quickstart`; --help says the rest."""

import signal
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parent.parent)  # the checkout, not this folder

from gptjax import allocator

if __name__ == "__main__":
    allocator.tune()  # must come before jax is imported
    from gptjax.command_line import main

    code = main()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a late Ctrl-C would turn the code into another
    sys.exit(code)
