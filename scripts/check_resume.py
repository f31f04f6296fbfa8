"""Kill `spt-jax predict` in the middle of a long file many times, and compare the outputs.

    python scripts/check_resume.py /tmp/resume --rows 100000 --kills 5

Random prompts of spt-nano answer rows of words by sampling. Some rows are invalid. One process runs
undisturbed. The other gets SIGKILL at random moments and is started again each time. Both must
write the same bytes, to the output and to the file of errors. The script prints one JSON object,
with the peak memory of the undisturbed process. The exit code is 1 if the outputs differ.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from spt_jax.models.backbone import find_backbone
from spt_jax.prompts.file import save_prompt

WORDS = "the number of items in a container returns value list if name is given".split()


def main() -> int:
    parser = argparse.ArgumentParser(description="Kills predict, and compares.")
    parser.add_argument("folder", type=Path, help="Made anew; what it holds is deleted.")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--kills", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    shutil.rmtree(options.folder, ignore_errors=True)
    rng = random.Random(options.seed)
    bad = write_inputs(options.folder, options.rows, rng)
    whole, seconds = options.folder / "whole.jsonl", time.monotonic()
    code, peak = end(start(options.folder, whole))
    seconds = time.monotonic() - seconds
    killed = options.folder / "killed.jsonl"
    wait = seconds / (options.kills + 1)
    stops = [kill_once(options.folder, killed, wait, rng) for _ in range(options.kills)]
    last_code = start(options.folder, killed).wait()
    digests = [digest(file) for file in (whole, killed)]
    errors = [digest(Path(f"{file}.errors.jsonl")) for file in (whole, killed)]
    lines = sum(1 for _ in open(whole, "rb"))
    same = digests[0] == digests[1] and errors[0] == errors[1] and code == last_code == 3
    result = {
        "same": same and lines == options.rows - bad,
        "rows": options.rows,
        "answered": lines,
        "bad": bad,
        "killed_after_lines": stops,
        "exit_codes": [code, last_code],
        "sha256": digests[0],
        "seconds_undisturbed": round(seconds, 1),
        "peak_mib_undisturbed": peak,
    }
    print(json.dumps(result))
    return 0 if result["same"] else 1


def write_inputs(folder: Path, rows: int, rng: random.Random) -> int:
    """Write a.safetensors, b.safetensors and rows.jsonl; return the number of invalid rows."""
    folder.mkdir(parents=True)
    described = json.loads((find_backbone("spt-nano") / "config.json").read_text())
    draws = np.random.default_rng(rng.randrange(2**32))
    for name, length in (("a", 4), ("b", 9)):
        prompt = draws.standard_normal((length, described["t5"]["d_model"])).astype(np.float32)
        metadata = {"model": "spt-nano", "fingerprint": described["fingerprint"]}
        save_prompt(folder / f"{name}.safetensors", prompt, metadata)
    bad = 0
    with open(folder / "rows.jsonl", "w") as file:
        for number in range(rows):
            prompt = rng.choice(("a", "b", None, "c" if number % 97 == 0 else "a"))
            text = " ".join(rng.choices(WORDS, k=rng.randint(1, 6)))
            bad += prompt == "c"
            file.write(json.dumps({"prompt": prompt, "text": text, "id": number}) + "\n")
    return bad


def start(folder: Path, output: Path) -> subprocess.Popen:
    """Start `spt-jax predict` on the rows."""
    command = [sys.executable, "-m", "spt_jax", "predict", "--model=spt-nano"]
    command += [f"--prompt={name}={folder}/{name}.safetensors" for name in "ab"]
    command += [f"--input={folder}/rows.jsonl", f"--output={output}", "--sample", "--scores"]
    command += ["--inputs_length=24", "--targets_length=3", "--batch_size=256", "--window=2048"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def end(process: subprocess.Popen) -> tuple[int, int]:
    """Wait for a process; return its exit code and its peak memory in MiB."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode, usage.ru_maxrss // (1 << 20 if sys.platform == "darwin" else 1024)


def kill_once(folder: Path, output: Path, wait: float, rng: random.Random) -> int:
    """Start a process, kill it up to `wait` seconds after it wrote; return its certain lines."""
    before, process = certain_lines(output), start(folder, output)
    while certain_lines(output) == before:
        if process.poll() is not None:
            raise SystemExit(f"predict ended with code {process.returncode} before it was killed")
        time.sleep(0.01)
    time.sleep(rng.uniform(0, wait))
    process.send_signal(signal.SIGKILL)
    if process.wait() != -signal.SIGKILL:
        raise SystemExit(f"predict ended with code {process.returncode} before it was killed")
    return certain_lines(output)


def certain_lines(output: Path) -> int:
    state = Path(f"{output}.run.json")
    return json.loads(state.read_text())["done"]["lines"] if state.exists() else 0


def digest(file: Path) -> str:
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


if __name__ == "__main__":
    sys.exit(main())
