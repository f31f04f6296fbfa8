"""The other side of `serve.py`: PEFT's adapters on transformers' T5, behind FastAPI.

    python serve_peft.py FOLDER BATCH_SIZE

PEFT answers a batch with one adapter. So the adapter of the request that has waited longest is made
the active one, and up to BATCH_SIZE of the waiting requests for it are answered in one batch.
`write_side` fills FOLDER.
"""
# pyright: reportMissingImports=false
# torch and peft come with the extra `parity` alone.

import asyncio
import json
import queue
import socket
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def write_side(job: dict, paths: dict[str, str], folder: Path) -> None:
    """Write the model as a folder of transformers, its tokenizer, and the prompts."""
    import importlib

    import torch
    import transformers
    from step_sides import ROOT

    from spt_jax.models.backbone import load_backbone
    from spt_jax.prompts.file import load_prompt

    sys.path.insert(0, str(ROOT / "tests"))
    oracle: Any = importlib.import_module("parity.torch_t5")
    transformers.utils.logging.disable_progress_bar()
    backbone = load_backbone(job["model"])
    model = oracle.torch_model(backbone.model.config, backbone.params, torch.float32)
    model.save_pretrained(folder)
    bundled = ROOT / "spt_jax" / "backbones" / job["model"]
    tokenizer = (bundled if bundled.is_dir() else Path(job["model"])) / "tokenizer.json"
    (folder / "tokenizer.json").write_bytes(tokenizer.read_bytes())
    prompts: Any = {name: load_prompt(path)[0] for name, path in paths.items()}
    np.savez(folder / "prompts.npz", **prompts)
    names = ("inputs_length", "targets_length")
    (folder / "job.json").write_text(json.dumps({name: job[name] for name in names}))


class Adapters:
    """The model with an adapter for each prompt."""

    def __init__(self, folder: Path):
        import peft
        import tokenizers
        import torch
        import transformers

        transformers.utils.logging.disable_progress_bar()
        self._torch, self._job = torch, json.loads((folder / "job.json").read_text())
        self._tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        base = transformers.T5ForConditionalGeneration.from_pretrained(folder)
        self._model: Any = None
        for name, prompt in np.load(folder / "prompts.npz").items():
            config = peft.PromptTuningConfig(
                task_type="SEQ_2_SEQ_LM",
                num_virtual_tokens=len(prompt),
                num_transformer_submodules=1,  # its default, 2, adds rows that nothing reads
                inference_mode=True,
            )
            if self._model is None:
                self._model = peft.get_peft_model(base, config, adapter_name=name)
            else:
                self._model.add_adapter(name, config)
            weight = self._model.prompt_encoder[name].embedding.weight
            weight.data.copy_(torch.from_numpy(prompt))
        self._model.eval()

    def answer(self, name: str, texts: Sequence[str]) -> list[str]:
        """Answer texts with one adapter."""
        torch, longest = self._torch, self._job["inputs_length"]
        rows = [[*self._tokenizer.encode(text).ids[: longest - 1], 1] for text in texts]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        self._model.set_adapter(name, inference_mode=True)
        with torch.inference_mode():
            written = self._model.generate(
                input_ids=ids,
                attention_mask=(ids != 0).long(),
                do_sample=False,
                max_new_tokens=self._job["targets_length"],
            )
        return [self._tokenizer.decode(_until_end(row)) for row in written[:, 1:].tolist()]


def _until_end(row: list[int]) -> list[int]:
    return row[: row.index(1)] if 1 in row else row


class Waiting:
    """A queue of requests, and the thread that answers them, an adapter at a time."""

    def __init__(self, adapters: Adapters, batch_size: int):
        self._adapters, self._batch_size = adapters, batch_size
        self._arrived: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=self._run, daemon=True).start()

    async def ask(self, name: str, text: str) -> str:
        """Wait for the answer to a text."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[str] = loop.create_future()
        self._arrived.put((name, text, loop, future))
        return await future

    def _run(self) -> None:
        waiting: list[tuple] = []
        while True:
            if not waiting:
                waiting.append(self._arrived.get())
            while not self._arrived.empty():
                waiting.append(self._arrived.get())
            name = waiting[0][0]
            batch = [request for request in waiting if request[0] == name][: self._batch_size]
            waiting = [request for request in waiting if request not in batch]
            answers = self._adapters.answer(name, [text for _, text, _, _ in batch])
            for (_, _, loop, future), answer in zip(batch, answers, strict=True):
                loop.call_soon_threadsafe(future.set_result, answer)


def main(folder: Path, batch_size: int) -> None:
    """Serve until SIGTERM. A line of JSON says where."""
    import uvicorn
    from fastapi import Body, FastAPI

    app, waiting = FastAPI(), Waiting(Adapters(folder), batch_size)

    @app.post("/v1/completions")
    async def complete(model: str = Body(), prompt: str = Body()) -> dict:
        return {"choices": [{"text": await waiting.ask(model, prompt)}]}

    # Named TCP, so that asyncio lets no part of an answer wait for an acknowledgement.
    listening = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listening.bind(("127.0.0.1", 0))
    listening.listen(1000)
    address = f"http://127.0.0.1:{listening.getsockname()[1]}"
    print(json.dumps({"event": "listening", "address": address}))
    print(json.dumps({"event": "ready"}), flush=True)
    settings = uvicorn.Config(app, log_level="critical", access_log=False)
    uvicorn.Server(settings).run([listening])


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
