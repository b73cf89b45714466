"""What every process of ours sets before it works: the store of programs, what libraries log."""

import logging
import os
from pathlib import Path


def use_compilation_cache() -> None:
    """Keep compiled programs between starts, beside the prepared corpora."""
    import jax

    root = Path(os.environ.get("GPTJAX_CACHE") or Path.home() / ".cache" / "gptjax")
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(root / "compiled"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def quiet_libraries() -> None:
    """orbax logs whole tracebacks of failures that reach us as errors and become one line."""
    for name in ("absl", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)
