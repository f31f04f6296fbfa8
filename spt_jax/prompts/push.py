"""Upload the prompt of a run to the Hub, with a model card and as a PEFT adapter."""

import json
import tempfile
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import HFValidationError

from spt_jax.config.fields import flatten
from spt_jax.errors import shorten
from spt_jax.prompts.card import hub_base, make_card, public_name
from spt_jax.prompts.convert import require_new, write_folder
from spt_jax.prompts.file import prompt_bytes
from spt_jax.prompts.peft import peft_files
from spt_jax.prompts.read import read_prompt
from spt_jax.runs.folder import RunFolder
from spt_jax.runs.workdir import open_run


def push_prompt(
    run: Path, repo: str, *, private: bool = False, dry_run: bool = False
) -> dict[str, Any]:
    """Upload the best prompt of a finished run to a repository of the Hub, which is made if needed.

    The files are `prompt.safetensors`, the two files of a PEFT adapter, and `README.md`, a card
    made from the run. Files of the same names there are replaced.

    Args:
        run: Folder of the run, local or in a bucket.
        repo: `owner/name`.
        private: Whether a repository that is made is private.
        dry_run: Write the files to the folder `name` instead, and use no network.

    Returns:
        What `spt-jax prompt push` prints: the repository, its address or the folder, and the bytes
        of each file.

    Raises:
        FileExistsError: With `dry_run`, the folder exists.
        FileNotFoundError: `run` is not the folder of a run.
        ValueError: The run is not finished or tuned the model, `repo` is not `owner/name`, there is
            no token that may write, or the upload failed.
    """
    _require_repo(repo)
    files = _make_files(run, repo)
    sizes = {name: len(data) for name, data in files.items()}
    if dry_run:
        folder = Path(repo.partition("/")[2])
        require_new(folder)
        write_folder(folder, files)
        return {"repo": repo, "private": private, "folder": str(folder), "bytes": sizes}
    api = huggingface_hub.HfApi()
    _require_token(api)
    try:
        with tempfile.TemporaryDirectory() as place:
            write_folder(folder := Path(place) / "files", files)
            url = api.create_repo(repo, private=private, exist_ok=True)
            message = "Upload a soft prompt of spt_jax"
            api.upload_folder(repo_id=repo, folder_path=folder, commit_message=message)
    except Exception as error:  # no permission, no network, and more, each of another class
        raise ValueError(
            f"'{repo}' cannot be written ({type(error).__name__}: {shorten(str(error), 200)}); "
            "check the network, and that your token may write there"
        ) from error
    return {"repo": repo, "private": private, "url": str(url), "bytes": sizes}


def _require_repo(repo: str) -> None:
    try:
        huggingface_hub.utils.validate_repo_id(repo)
        if repo.count("/") == 1:
            return
    except HFValidationError:
        pass
    raise ValueError(
        f"'{repo}' is no name of a repository, expected owner/name, such as my-name/boolq-prompt"
    )


def _require_token(api: huggingface_hub.HfApi) -> None:
    """Raise ValueError if there is no token, or one that can only read."""
    how = "make one at https://huggingface.co/settings/tokens and run `hf auth login`"
    if huggingface_hub.get_token() is None:
        raise ValueError(f"there is no token of the Hub, which an upload needs; {how}")
    try:
        of_token = api.whoami().get("auth", {}).get("accessToken", {})
    except Exception as error:  # an expired token, no network, and more
        raise ValueError(
            f"the Hub does not take the token ({type(error).__name__}: "
            f"{shorten(str(error), 200)}); check the network, or {how}"
        ) from error
    if of_token.get("role") == "read":
        raise ValueError(f"the token of the Hub may only read, expected one that may write; {how}")


def _make_files(run: Path, repo: str) -> dict[str, bytes]:
    """Return what is uploaded, by name."""
    with open_run(run) as place:
        folder = RunFolder(place)
        config = folder.read_config()
        if not folder.result_file.is_file():
            raise ValueError(
                f"run '{run}' is not finished: it has no {folder.result_file.name}; give its train "
                "command again, and then push it"
            )
        stored = read_prompt(place)
        result = json.loads(folder.result_file.read_text("utf-8"))
        facts = folder.read_manifest().get("data", {})
    card = make_card(repo, stored.metadata, flatten(config), result, facts)
    model = stored.metadata["model"]
    metadata = {**stored.metadata, "model": public_name(model)}
    return {
        "README.md": card.encode(),
        "prompt.safetensors": prompt_bytes(stored.prompt, metadata),
        **peft_files(stored.prompt, metadata, hub_base(model)),
    }
