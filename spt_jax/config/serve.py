"""What a server answers, how many rows it takes at a time, and what it refuses.

Nothing here imports jax. `EngineConfig` is about rows and batches, with or without HTTP;
`ServeConfig` is about connections and requests.
"""

from dataclasses import dataclass
from typing import Annotated

from spt_jax.config.fields import Config, Count, Lengths, Positive, PositiveOrZero, Rule


@dataclass(frozen=True, kw_only=True)
class EngineConfig(Config):
    """Rows, batches and the queue.

    Args:
        inputs_length: Most tokens of a text, with the end marker; the prompt comes on top. A longer
            text is refused.
        targets_length: Most tokens of an answer, with the end marker.
        batch_size: Most rows of a batch.
        buckets: Lengths in tokens that the texts of a batch are padded to. Each is compiled at the
            start, for each number of rows. `inputs_length` is always the last.
        max_wait: Milliseconds that a row waits for others before its batch starts with free places.
        queue: Most rows that wait. A request with more is refused until there is room.
        max_rows: Most rows of one request: its inputs, times `n` or times the prompts it names.
        capacity: Most prompts that are loaded at a time; by default as many as are given, and 16
            more if prompts may be loaded while the server runs.
        prompt_length: Most vectors of a prompt; by default those of the longest that is given, or
            100 if none is given and prompts may be loaded. Every row is computed with so many.
    """

    inputs_length: Count = 128
    targets_length: Count = 16
    batch_size: Count = 32
    buckets: Lengths = (32, 64, 128, 256, 512)
    max_wait: PositiveOrZero = 5.0
    queue: Count = 1024
    max_rows: Count = 64
    capacity: Count | None = None
    prompt_length: Count | None = None


@dataclass(frozen=True, kw_only=True)
class ServeConfig(Config):
    """The address, and limits of connections and requests.

    Args:
        host: Address to listen on. 127.0.0.1 is reached from this machine alone.
        port: Port to listen on; 0 takes a free one, which the first line of output names.
        timeout: Seconds in which a request is answered; after them it gets status 504.
        drain: Seconds after SIGTERM in which accepted requests are still answered.
        max_body: Most bytes of the body of a request.
        max_connections: Most connections at a time; a further one is closed.
        read_timeout: Seconds in which the head of a request has to arrive, and then its body.
    """

    host: str = "127.0.0.1"
    port: Annotated[int, Rule(lambda n: 0 <= n < 65536, "0 to 65535")] = 8000
    timeout: Positive = 60.0
    drain: Positive = 30.0
    max_body: Count = 1 << 20
    max_connections: Count = 1000
    read_timeout: Positive = 10.0
