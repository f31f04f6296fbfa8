"""Find and connect the processes of a command, and end them together.

    with session(DistributedConfig(), argv):      does nothing in a single process
        result = fit(config, folder)
        print_result(result)                      prints on process 0 only

On a TPU slice, under SLURM and under Open MPI, jax detects the place of each process. Elsewhere the
config gives it. A session has to start before jax looks for its devices.
"""

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence

import jax
from jax.experimental import multihost_utils

from spt_jax.config.devices import DistributedConfig
from spt_jax.distributed.main_process import barrier
from spt_jax.distributed.preemption import shared
from spt_jax.distributed.rendezvous import Place, meet
from spt_jax.distributed.watch import Watch

CLUSTERS = ("gcetpu", "gketpu", "slurm", "ompi")
"""jax's cluster types that know the place of a process without asking another service."""


@contextlib.contextmanager
def session(config: DistributedConfig, argv: Sequence[str]) -> Iterator[None]:
    """Connect the processes of a run. An error of one process ends all, with its exit code.

    Args:
        config: Place of this process, if jax cannot detect it.
        argv: The command and its arguments, for error messages.

    Raises:
        RunError: The processes do not find each other.
    """
    found = find_place(config)
    if found is None:
        yield
        return
    place, method = found
    links = meet(place, config.timeout)
    watch = Watch(place, links, config.heartbeat)
    try:
        jax.distributed.initialize(
            place.coordinator,
            place.count,
            place.index,
            cluster_detection_method=method,
            initialization_timeout=config.timeout,
            heartbeat_timeout_seconds=2 * config.heartbeat,
        )
        with _quiet(place), shared(multihost_utils.reached_preemption_sync_point):
            yield
            barrier("the end of the run")
    except BaseException as error:
        watch.fail(error, argv)
    watch.stop()
    jax.distributed.shutdown()


def find_place(config: DistributedConfig) -> tuple[Place, str] | None:
    """Return the place of this process and the name of jax's method to detect it.

    Return None for a single process, or if jax is already connected.
    """
    if not config.detect or jax.distributed.is_initialized():
        return None
    if config.coordinator is not None:
        place = Place(config.coordinator, config.num_processes or 1, config.process_id or 0)
        return None if place.count == 1 else (place, "deactivate")
    from jax._src.clusters import ClusterEnv

    platforms = jax.config.values["jax_platforms"]
    for cluster in ClusterEnv._cluster_types:
        elsewhere = "tpu" in cluster.name and "tpu" not in (platforms or "tpu")
        if cluster.name not in CLUSTERS or elsewhere or not cluster.is_env_present():
            continue
        count = cluster.get_process_count()
        if count == 1:
            return None
        address = cluster.get_coordinator_address(
            timeout_secs=config.timeout,
            override_coordinator_port=os.environ.get("JAX_COORDINATOR_PORT"),
        )
        return Place(address, count, cluster.get_process_id()), cluster.name
    return None


@contextlib.contextmanager
def _quiet(place: Place) -> Iterator[None]:
    """Let only process 0 print, and keep output of C++ away from its stdout."""
    sys.stdout.flush()
    with open(os.devnull, "w") as nowhere, open(os.dup(1), "w") as out:
        os.dup2(2, 1)
        try:
            with (
                contextlib.redirect_stdout(nowhere if place.index else out),
                contextlib.redirect_stderr(nowhere if place.index else sys.stderr),
            ):
                yield
        finally:
            out.flush()
            os.dup2(out.fileno(), 1)
