"""Measure `spt-jax serve`: many clients, prompts and lengths, beside `predict` on the same rows.

    python benchmarks/serve.py --seconds 60

The server is a process of its own with random prompts of one model. Clients send a text at a time,
with random pauses. Answers are compared with what `Predictor` gives to the row alone. `Predictor`
answers many of the rows in one call, before and after the server, for the throughput without HTTP.
The clients share the cores with the server. With `--peft` they ask PEFT behind FastAPI too, see
`serve_peft.py`. It needs the extra serve, and parity for PEFT.
"""

import argparse
import asyncio
import json
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from command import Options, SideError, run, say
from decode import machine_lines
from step import describe_machine

WORDS = (
    "return the number of items in a container or raise an error if it is empty then write every "
    "value to the file that was given by name and close it"
).split()


def draw_rows(job: dict, count: int) -> list[tuple[str, str]]:
    """Return rows of random prompts and lengths: the name of a prompt and a text."""
    draw = random.Random(1)
    return [
        (f"task{draw.randrange(job['prompts'])}", " ".join(draw.choices(WORDS, k=length)))
        for length in (draw.randint(2, job["words"]) for _ in range(count))
    ]


def write_model(shape: str, folder: Path) -> str:
    """Write a T5 of a published shape with random weights and the tokenizer of spt-nano."""
    import jax

    from spt_jax.models.backbone import save_backbone
    from spt_jax.models.open import find_tokenizer
    from spt_jax.t5 import PRESETS, T5

    config = PRESETS[shape]
    params = jax.jit(T5(config).init_params)(jax.random.key(0))
    save_backbone(folder, shape, config, params, find_tokenizer("spt-nano"), dtype="float32")
    return str(folder)


def write_prompts(job: dict, folder: Path) -> dict[str, str]:
    """Write random prompts of the model and return the path of each by its name."""
    from spt_jax.models.backbone import read_shape
    from spt_jax.prompts.file import save_prompt

    config, fingerprint = read_shape(job["model"])
    draw, paths = np.random.default_rng(0), {}
    for number in range(job["prompts"]):
        vectors = 2 * draw.standard_normal((job["length"], config.d_model)).astype(np.float32)
        paths[f"task{number}"] = str(folder / f"task{number}.safetensors")
        save_prompt(paths[f"task{number}"], vectors, {"fingerprint": fingerprint})
    return paths


def server_command(job: dict, paths: dict[str, str]) -> list[str]:
    """Return the command that serves the prompts."""
    command = [sys.executable, "-m", "spt_jax", "serve", f"--model={job['model']}", "--port=0"]
    command += [f"--prompt={name}={path}" for name, path in paths.items()]
    command += [f"--{name}={job[name]}" for name in ("inputs_length", "targets_length")]
    return [*command, f"--batch_size={job['batch_size']}", "--timeout=600"]


class Server:
    """A server as a process; `seconds` is the time from its start until it was ready."""

    def __init__(self, command: list[str]):
        self._log = tempfile.TemporaryFile("w+")
        started = time.perf_counter()
        self.process = subprocess.Popen(command, stdout=self._log, text=True)
        self.url = self._event("listening")["address"]
        self._event("ready")
        self.seconds = time.perf_counter() - started

    def _event(self, name: str) -> dict:
        while self.process.poll() is None:
            self._log.seek(0)
            for line in self._log:
                if line.endswith("\n") and (event := json.loads(line))["event"] == name:
                    return event
            time.sleep(0.05)
        raise SideError(f"the server ended with code {self.process.returncode}")

    def memory(self) -> int:
        """Return the bytes that the process holds."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        found = re.search(r"VmRSS:\s+(\d+) kB", status)
        return 1024 * int(found[1]) if found else 0

    def metric(self, name: str) -> float:
        """Return the sum of a metric over its labels."""
        text = httpx.get(f"{self.url}/metrics", trust_env=False).text
        return sum(float(x) for x in re.findall(rf"^{name}(?:{{.*}})? (\S+)$", text, re.M))

    def end(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


class Connection:
    """A connection that is kept. The clients share the cores with the server, so they do little."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self._reader, self._writer = reader, writer

    @classmethod
    async def to(cls, url: str) -> "Connection":
        """Connect to the host and port of an address."""
        host, _, port = url.removeprefix("http://").rpartition(":")
        return cls(*await asyncio.open_connection(host, int(port)))

    async def ask(self, path: str, form: dict) -> tuple[int, Any]:
        """Post a form as JSON, and return the status and the JSON of the answer."""
        body = json.dumps(form).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
        self._writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        lines = (await self._reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        fields = dict(line.split(": ", 1) for line in lines[1:] if line)
        answer = await self._reader.readexactly(int(fields["content-length"]))
        return int(lines[0].split()[1]), json.loads(answer)

    def close(self) -> None:
        """Leave the server."""
        self._writer.close()


async def ask_all(
    url: str, job: dict, rows: list[tuple[str, str]]
) -> tuple[list[tuple[int, str]], list[float], Counter, float]:
    """Let the clients ask until the time or the rows are over.

    Returns:
        The answered rows with their answers, the seconds of each request, the statuses of the
        others, and the seconds of the whole.
    """
    answers: list[tuple[int, str]] = []
    latencies: list[float] = []
    others: Counter = Counter()
    numbers = iter(range(len(rows)))
    started = time.perf_counter()
    end = started + job["seconds"]

    async def client(number: int) -> None:
        draw = random.Random(number)
        connection = await Connection.to(url)
        while time.perf_counter() < end and (row := next(numbers, None)) is not None:
            await asyncio.sleep(draw.expovariate(1000 / job["pause"]))
            name, text = rows[row]
            asked = time.perf_counter()
            status, found = await connection.ask("/v1/completions", {"model": name, "prompt": text})
            latencies.append(time.perf_counter() - asked)
            if status == 200:
                answers.append((row, found["choices"][0]["text"]))
            else:
                others[status] += 1
        connection.close()

    await asyncio.gather(*map(client, range(job["clients"])))
    return answers, latencies, others, time.perf_counter() - started


class Alone:
    """`Predictor` in this process."""

    def __init__(self, job: dict, paths: dict[str, str]):
        from spt_jax.models.backbone import load_backbone
        from spt_jax.prediction.predictor import Predictor
        from spt_jax.prompts.bank import load_bank

        backbone = load_backbone(job["model"])
        self._options: dict[str, Any] = {
            "inputs_length": job["inputs_length"],
            "targets_length": job["targets_length"],
        }
        bank = load_bank(backbone, paths)
        self._many = Predictor(backbone, bank, batch_size=job["batch_size"], **self._options)
        self._one = Predictor(backbone, bank, batch_size=1, **self._options)

    def many(self, rows: list[tuple[str, str]]) -> float:
        """Return the rows per second of one call with all rows."""
        started = time.perf_counter()
        self._many.predict(rows)
        return len(rows) / (time.perf_counter() - started)

    def one(self, row: tuple[str, str]) -> str:
        """Return the answer to a row in a batch of its own."""
        return self._one.predict([row])[0].texts[0]


def measure(job: dict, command: str) -> dict:
    """Run the whole benchmark and return what `--json` prints."""
    rows = draw_rows(job, job["rows"])
    with tempfile.TemporaryDirectory() as folder:
        model = job["model"]
        if job["shape"]:
            say("making the weights")
            job = {**job, "model": write_model(job["shape"], Path(folder) / "model")}
        paths = write_prompts(job, Path(folder))
        say("compiling predict")
        alone = Alone(job, paths)
        sample = rows[: 8 * job["batch_size"]]
        alone.many(sample)
        before = alone.many(sample)
        say("starting the server")
        server = Server(server_command(job, paths))
        try:
            compiled, memory = server.metric("spt_jax_compilations_total"), server.memory()
            answers, latencies, others, seconds = asyncio.run(ask_all(server.url, job, rows))
            compiled = server.metric("spt_jax_compilations_total") - compiled
            batches = server.metric("spt_jax_batches_total")
            fill = server.metric("spt_jax_batch_fill_sum") / max(1, batches)
            computed = server.metric("spt_jax_rows_total") / max(1, batches)
            grown = server.memory() - memory
            say("killing the server, and starting it again")
            server.process.kill()
            server.process.wait()
            ready = server.seconds
            server = Server(server_command(job, paths))
            again = server.seconds
        finally:
            code = server.end()
        say(f"{len(answers):,} answers in {seconds:.0f} s; comparing them with predict")
        asked = [rows[number] for number, _ in answers]
        after = alone.many(asked[: max(len(sample), len(asked) // 4)])
        compared = answers[:: max(1, len(answers) // job["compare"])]
        wrong = [number for number, text in compared if alone.one(rows[number]) != text]
        peft = measure_peft(job, paths, Path(folder) / "peft", rows) if job["peft"] else None
    predicted = (before + after) / 2
    return {
        "command": command,
        "machine": describe_machine(job["cores"]),
        "setup": {**job, "model": job["shape"] or model},
        "ready_seconds": ready,
        "ready_again_seconds": again,
        "answers": len(answers),
        "others": dict(others),
        "rows_per_second": len(answers) / seconds,
        "predict_rows_per_second": [before, after],
        "of_predict": len(answers) / seconds / predicted,
        "latency_ms": quantiles(latencies),
        "batch_fill": fill,
        "rows_of_a_batch": computed,
        "compared": len(compared),
        "wrong": len(wrong),
        "compilations": compiled,
        "grown_bytes": grown,
        "exit_code": code,
        "peft": peft and {**peft, "same": share_of_same(peft.pop("texts"), answers)},
    }


def measure_peft(job: dict, paths: dict[str, str], folder: Path, rows: list) -> dict:
    """Ask PEFT behind FastAPI the same rows in the same way."""
    say("asking PEFT")
    write = "import json, sys; from pathlib import Path; from serve_peft import write_side; "
    write += "write_side(*json.loads(sys.argv[1]), Path(sys.argv[2]))"
    here = Path(__file__).parent
    command = [sys.executable, "-c", write, json.dumps([job, paths]), str(folder)]
    subprocess.run(command, check=True, cwd=here)
    script = str(here / "serve_peft.py")
    server = Server([sys.executable, script, str(folder), str(job["batch_size"])])
    try:
        answers, latencies, others, seconds = asyncio.run(ask_all(server.url, job, rows))
    finally:
        server.end()
    return {
        "texts": answers,
        "others": dict(others),
        "rows_per_second": len(answers) / seconds,
        "latency_ms": quantiles(latencies),
    }


def share_of_same(theirs: list[tuple[int, str]], ours: list[tuple[int, str]]) -> float | None:
    """Return the share of the rows answered by both that have the same answer."""
    texts = dict(ours)
    same = [texts[row] == text for row, text in theirs if row in texts]
    return sum(same) / len(same) if same else None


def quantiles(seconds: list[float]) -> dict[str, float]:
    """Return quantiles in milliseconds."""
    points = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
    return {name: 1000 * float(np.quantile(seconds, q)) for name, q in points.items()}


def to_markdown(result: dict) -> str:
    """Format the section of docs/serving.md."""

    def shown(latency: dict[str, float]) -> str:
        return f"{', '.join(f'{value:.0f}' for value in latency.values())} ms"

    job, peft = result["setup"], result["peft"]
    before, after = result["predict_rows_per_second"]
    lines = [
        ("answers", f"{result['answers']:,}"),
        ("other statuses", str(result["others"] or "none")),
        ("answers per second", f"{result['rows_per_second']:.1f}"),
        ("`predict` on these rows, rows per second", f"{before:.1f} before, {after:.1f} after"),
        ("server / `predict`", f"{result['of_predict']:.2f}"),
        ("latency p50, p95, p99", shown(result["latency_ms"])),
        ("batch fill", f"{result['batch_fill']:.0%} of {result['rows_of_a_batch']:.1f} rows"),
        (
            "answers unlike those of `predict` to the row alone",
            f"{result['wrong']} of {result['compared']:,} compared",
        ),
        ("programs compiled after the warm-up", f"{result['compilations']:.0f}"),
        ("memory of the server, end minus start", f"{result['grown_bytes'] / 2**20:+.0f} MiB"),
        ("start to ready", f"{result['ready_seconds']:.1f} s"),
        ("start to ready again, after SIGKILL", f"{result['ready_again_seconds']:.1f} s"),
        ("exit code after SIGTERM", str(result["exit_code"])),
    ]
    if peft:
        faster = result["rows_per_second"] / peft["rows_per_second"]
        lines += [
            ("PEFT, answers per second", f"{peft['rows_per_second']:.1f}"),
            ("server / PEFT", f"**{faster:.2f}**"),
            ("PEFT, latency p50, p95, p99", shown(peft["latency_ms"])),
            ("answers of PEFT that are the same", f"{peft['same']:.1%}"),
        ]
    return "\n".join(
        [
            *machine_lines(result),
            f"`{job['model']}`, {job['prompts']} prompts of {job['length']} vectors, "
            f"{job['clients']} clients with pauses of {job['pause']} ms on average, texts of up to "
            f"{job['inputs_length']} tokens, answers of up to {job['targets_length']}, batches of "
            f"up to {job['batch_size']} rows.",
            "",
            "| | |",
            "|---|---|",
            *(f"| {name} | {value} |" for name, value in lines),
        ]
    )


def parse_args(argv: list[str]) -> argparse.Namespace:
    """Parse the command line."""
    parser = Options(__doc__)
    parser.add_argument("--model", default="spt-nano", help="as `spt-jax serve` takes it")
    parser.add_argument("--shape", help="a published T5 with random weights, in place of --model")
    parser.number("--words", 30, "most words of a text; spt-nano has two tokens for some")
    parser.number("--seconds", 60, "most seconds of asking")
    parser.number("--rows", 100_000, "most rows that are asked")
    parser.number("--clients", 64, "clients that ask at a time")
    parser.number("--pause", 5, "mean milliseconds between an answer and the next request")
    parser.number("--prompts", 8, "prompts")
    parser.number("--length", 20, "vectors of a prompt")
    parser.number("--inputs_length", 64, "most tokens of a text")
    parser.number("--targets_length", 8, "most tokens of an answer")
    parser.number("--batch_size", 32, "most rows of a batch")
    parser.number("--compare", 2000, "answers that are compared with predict, at most twice")
    parser.add_argument("--peft", action="store_true", help="ask PEFT behind FastAPI too")
    parser.add_form()
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    """Run the script and return the exit code."""
    args = parse_args(argv)
    needs = ("torch", "peft") if args.peft else ()
    return run("serve", "PEFT", needs, measure, to_markdown, argv, args)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
