"""Several hosts as one machine: started once, before anything asks jax for its devices."""

import os

AGREE_EVERY = 16  # steps between two looks at whether any host was told to stop


def start_hosts() -> None:
    """Join the other processes of this run, where the environment says that there are any.

    Set JAX_COORDINATOR_ADDRESS (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID for each, or
    start them by `srun` with more than one task; TPU pods are known by TPU_WORKER_HOSTNAMES.
    """
    slurm = int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ
    pod = "," in os.environ.get("TPU_WORKER_HOSTNAMES", "")
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if not (slurm or pod or address):
        return
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would take SIGTERM away from those who answer it here.
    jax.config.update("jax_enable_preemption_service", False)
    # Programs in flight side by side would meet their collectives in another order on each host.
    jax.config.update("jax_cpu_enable_async_dispatch", False)
    if address:
        jax.distributed.initialize(
            address,
            int(os.environ["JAX_NUM_PROCESSES"]),
            int(os.environ["JAX_PROCESS_ID"]),
        )
    else:
        jax.distributed.initialize()


def any_host(flag: bool) -> bool:
    """Whether the flag is set on any host; all of them must ask at the same step."""
    import jax

    if jax.process_count() == 1:
        return flag
    import numpy as np
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.int32(flag))))
