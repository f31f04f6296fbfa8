"""The pages of the site that are not files of docs/. mkdocs calls the functions named `on_...`.

The README is the start page. The reference of the commands is what their `--help` prints, and the
reference of Python is made of the docstrings, so both are those of the code. A link to a file
outside of docs/ leads to a page that shows the file, because the site knows no address of a
repository.
"""

import contextlib
import io
import json
import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

import spt_jax
from spt_jax.cli.main import COMMANDS, main

ROOT = Path(__file__).parents[2]

TOP = {
    "index.md": "README.md",
    "contributing.md": "CONTRIBUTING.md",
    "changelog.md": "CHANGELOG.md",
}
"""Pages of the site that are files at the top of the repository."""

LINK = re.compile(
    r"^```.*?^```$|\]\((?!https?:|data:|#)([^)\s#]+)(#[^)\s]*)?\)", re.MULTILINE | re.DOTALL
)
"""A block of code, which stays as it is, or the path and the anchor of a relative link."""

LANGUAGES = {".py": "python", ".sh": "bash", ".yaml": "yaml", ".cff": "yaml"}

AREAS = {
    "train": "Train",
    "config": "Options",
    "evaluation": "Evaluate",
    "prediction": "Answer",
    "prompts": "Prompts",
    "models": "Models",
    "data": "Tasks and rows",
    "decoding": "Generate",
    "tokenizers": "Tokenizers",
    "errors": "Errors",
}
"""Headings of the reference of Python, by the part of the package that defines a name."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the pages of the commands to the navigation."""
    assert config.nav is not None, "mkdocs.yml has no nav"
    config.nav.append({"Commands": ["cli/index.md", *(f"cli/{name}.md" for name in COMMANDS)]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are not files of docs/."""
    pages = {page: (ROOT / source).read_text() for page, source in TOP.items()}
    guides = {file.src_uri: file.content_string for file in files.documentation_pages()}
    for page, text in {**pages, **guides}.items():
        for path in _shown_paths(page, text):
            pages |= _file_pages(path)
    for page, text in {**pages, **_command_pages(), "api.md": _api_page()}.items():
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Lead each relative link of a file of the repository to a page of the site."""
    here = page.file.src_uri
    if not (here in TOP or here.endswith(".ipynb.md") or (ROOT / "docs" / here).is_file()):
        return markdown

    def lead(found: re.Match[str]) -> str:
        path, anchor = found.groups()
        if path is None:
            return found[0]
        page = _page_of(_repository_path(here, path))
        return f"]({posixpath.relpath(page, posixpath.dirname(here) or '.')}{anchor or ''})"

    return LINK.sub(lead, markdown)


def _repository_path(page: str, link: str) -> str:
    """Return where a link of a page leads, as a path from the top of the repository."""
    shown = page.removeprefix("files/") if page.startswith("files/") else f"docs/{page}"
    folder = posixpath.dirname(TOP.get(page, shown))
    return posixpath.normpath(posixpath.join(folder, link))


def _page_of(path: str) -> str:
    """Return the page of the site that shows a path of the repository."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    tops = {source: page for page, source in TOP.items()}
    return tops.get(path, f"files/{path}.md")


def _shown_paths(page: str, text: str) -> Iterator[Path]:
    """Yield the files and folders that a page links to and that have no other page."""
    for link, _ in LINK.findall(text):
        path = _repository_path(page, link)
        if link and _page_of(path).startswith("files/") and (ROOT / path).exists():
            yield ROOT / path


def _file_pages(path: Path) -> dict[str, str]:
    """Return the page of a file; of a folder, a page that lists its files, and their pages."""
    name = path.relative_to(ROOT).as_posix()
    if path.suffix == ".ipynb":
        return {_page_of(name): _notebook(path)}
    if path.is_file():
        block = f"````{LANGUAGES.get(path.suffix, 'text')}\n{path.read_text()}\n````"
        return {_page_of(name): f"# {name}\n\n{block}\n"}
    inside = sorted(child for child in path.iterdir() if child.is_file())
    lines = "\n".join(f"- [{child.name}]({path.name}/{child.name}.md)" for child in inside)
    pages = {_page_of(name): f"# {name}\n\n{lines}\n"}
    for child in inside:
        pages |= _file_pages(child)
    return pages


def _notebook(path: Path) -> str:
    """Return the texts, the code, the printed lines and the figures of a notebook."""
    parts = []
    for cell in json.loads(path.read_text())["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            if "text" in output:
                parts.append(f"```text\n{''.join(output['text']).strip()}\n```")
            elif "image/png" in output.get("data", {}):
                image = "".join(output["data"]["image/png"]).replace("\n", "")
                parts.append(f"![figure](data:image/png;base64,{image})")
    return "\n\n".join(parts) + "\n"


def _command_pages() -> dict[str, str]:
    """Return a page for each command with its help and that of its actions, and one for all."""
    pages = {"cli/index.md": f"# Commands\n\n{_help()}"}
    for name in COMMANDS:
        text = _help(name)
        actions = re.findall(rf"^(?:usage:|      ) spt-jax {name} ([a-z]+) ", text, re.MULTILINE)
        parts = [f"\n## {name} {action}\n\n{_help(name, action)}" for action in actions]
        pages[f"cli/{name}.md"] = f"# {name}\n\n{text}{''.join(parts)}"
    return pages


def _help(*words: str) -> str:
    """Return what `spt-jax WORDS --help` prints, as a block of code."""
    os.environ["COLUMNS"] = "84"  # the width to which argparse wraps
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = main([*words, "--help"])
    assert code == 0, f"spt-jax {' '.join(words)} --help ends with exit code {code}"
    return f"````text\n{out.getvalue().strip()}\n````\n"


def _api_page() -> str:
    """Return the page of all public names; mkdocstrings writes what their docstrings say."""
    names: dict[str, list[str]] = {area: [] for area in AREAS}
    for name in spt_jax.__all__:
        names[spt_jax._MODULES[name].split(".")[1]].append(f"::: spt_jax.{name}\n")
    parts = (f"## {AREAS[area]}\n\n" + "\n".join(names[area]) for area in AREAS)
    return "# Python\n\nAll of these are names of `spt_jax`.\n\n" + "\n".join(parts)
