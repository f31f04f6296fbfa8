"""Which process of a run this one is: by flags, by SLURM, or alone."""

import signal
import subprocess
import sys

import jax
import pytest
from support import hosts

from spt_jax.config.devices import DistributedConfig
from spt_jax.distributed.connect import find_place, session
from spt_jax.distributed.main_process import broadcast, gather, main_only, on_main, require_same
from spt_jax.distributed.rendezvous import Place

SLURM = {
    "SLURM_JOB_ID": "4096",
    "SLURM_STEP_NODELIST": "node[007-010]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "2",
    "SLURM_LOCALID": "0",
}


def test_a_single_machine_is_alone():
    assert find_place(DistributedConfig()) is None
    with session(DistributedConfig(), ["train"]):
        assert not jax.distributed.is_initialized()


def test_slurm_says_who_is_who(monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    assert find_place(DistributedConfig()) == (Place("node007:61440", 4, 2), "slurm")
    assert find_place(DistributedConfig(detect=False)) is None
    monkeypatch.setenv("SLURM_NTASKS", "1")
    assert find_place(DistributedConfig()) is None


def test_flags_win_over_slurm(monkeypatch):
    for name, value in SLURM.items():
        monkeypatch.setenv(name, value)
    config = DistributedConfig(coordinator="10.0.0.2:8476", num_processes=2, process_id=1)
    assert find_place(config) == (Place("10.0.0.2:8476", 2, 1), "deactivate")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"coordinator": "a:1"}, "distributed.coordinator is given alone; set distributed.coord"),
        (
            {"coordinator": "a", "num_processes": 2, "process_id": 0},
            "distributed.coordinator is 'a', expected HOST:PORT such as 10.0.0.2:8476",
        ),
        (
            {"coordinator": "a:1", "num_processes": 2, "process_id": 2},
            "distributed.process_id is 2, expected 0 to 1 with distributed.num_processes 2",
        ),
        ({"timeout": 0}, "distributed.timeout is 0, expected 1 or more"),
        ({"heartbeat": 1}, "distributed.heartbeat is 1, expected 3 or more"),
    ],
)
def test_what_contradicts_itself_is_one_line(options, message):
    with pytest.raises(ValueError, match=message):
        DistributedConfig(**options)


def test_in_one_process_everything_is_done_in_place():
    value = object()
    assert broadcast(value) is value and gather(value) == [value]
    assert on_main(lambda: value) is value
    require_same(config="a")
    with pytest.raises(KeyError, match="x"):
        on_main(lambda: {}["x"])
    with main_only(lambda: open(__file__)) as file:
        assert file.readline().startswith('"""Which process')
    assert file.closed


# jax aborts the others in C++ once it finds process 0 gone; here they abort before they can know.
KILLED = """
import ctypes, os, signal, sys
from spt_jax.config.devices import DistributedConfig
from spt_jax.distributed.main_process import barrier
from spt_jax.distributed.connect import session
index = int(sys.argv[2])
config = DistributedConfig(
    coordinator=sys.argv[1], num_processes=3, process_id=index, heartbeat=30, timeout=120
)
with session(config, ["train"]):
    barrier("all are there")
    if index == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    ctypes.CDLL(None).abort()
"""


def test_the_others_say_it_and_end_where_process_0_is_killed():
    address = f"127.0.0.1:{hosts.free_port()}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", KILLED, address, str(index)], stderr=subprocess.PIPE, text=True
        )
        for index in range(3)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [-signal.SIGKILL, 1, 1]
    line = "spt-jax: error: process 0 of 3 is gone: it was killed, or its machine or network failed"
    assert [error.count("spt-jax: ") for error in errors] == [0, 1, 0]  # one of them for all
    assert line in errors[1]
