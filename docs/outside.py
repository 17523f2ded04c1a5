"""What a page of docs/ links to outside docs/, as pages of the site; a hook of mkdocs (`make docs`).

On the forge ``../ARCHITECTURE.md`` leads to the file. In the site there is no such file, so it becomes the page
``project/ARCHITECTURE.md``, a source file becomes a page with its text, and a folder a page with the list of its files.
Nothing is copied into git: the pages are made while the site is built, and the links are rewritten.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOCS = "docs"
#: Where the pages from outside docs/ are in the site.
PROJECT = "project"
#: A file above this size is listed, but gets no page.
LARGEST_BYTES = 200_000

LINK = re.compile(r"\]\(([^)\s#]+)(#[^)\s]*)?\)")
FENCED = re.compile(r"^(```+|~~~+).*?^\1\s*$", re.MULTILINE | re.DOTALL)
LANGUAGES = {".proto": "protobuf", ".service": "ini", ".yml": "yaml", ".cfg": "ini"}


def replaced(text: str, change: Callable[[re.Match[str]], str]) -> str:
    """The text of a page with each link outside fenced code put through ``change``."""
    parts, end = [], 0
    for block in FENCED.finditer(text):
        parts += [LINK.sub(change, text[end : block.start()]), block.group()]
        end = block.end()
    return "".join([*parts, LINK.sub(change, text[end:])])


def links(text: str) -> list[tuple[str, str]]:
    """The links of a page to other files and their anchors, ``("../README.md", "#why")``; none to other hosts."""
    found: list[tuple[str, str]] = []

    def note(link: re.Match[str]) -> str:
        if not re.match(r"[a-z]+:", link[1]):
            found.append((link[1], link[2] or ""))
        return link.group()

    replaced(text, note)
    return found


def target(origin: str, link: str) -> str:
    """The path, from the root of the project, to which a link in the file ``origin`` leads."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(origin), link))


def page_of(path: str) -> str:
    """The place in the site of a file or folder of the project, both as paths: "docs/a.md" is at "a.md"."""
    if path.startswith(f"{DOCS}/"):
        return path.removeprefix(f"{DOCS}/")
    if (ROOT / path).is_dir():
        return f"{PROJECT}/{path}/index.md"
    return f"{PROJECT}/{path}" if path.endswith(".md") else f"{PROJECT}/{path}.md"


def rewritten(text: str, origin: str) -> str:
    """The text of the file ``origin``, with links as they must be in the site."""

    def change(link: re.Match[str]) -> str:
        if re.match(r"[a-z]+:", link[1]) or not (ROOT / target(origin, link[1])).exists():
            return link.group()  # to another host; or mkdocs says that it leads nowhere
        place = posixpath.relpath(page_of(target(origin, link[1])), posixpath.dirname(page_of(origin)))
        return f"]({place}{link[2] or ''})"

    return replaced(text, change)


def outside(starts: list[str]) -> dict[str, str]:
    """The files and folders outside docs/ to which the files ``starts`` lead, also by way of others: path -> text."""
    pages: dict[str, str] = {}
    waiting = [*starts]
    while waiting:
        origin = waiting.pop()
        if origin.endswith(".md"):
            text = (ROOT / origin).read_text(encoding="utf-8")
            leads = [target(origin, link) for link, _ in links(text)]
        elif (ROOT / origin).is_dir():
            text, leads = _listing(origin)
        else:
            text, leads = _source(origin), []
        if not origin.startswith(f"{DOCS}/"):
            pages[origin] = text
        new = [path for path in leads if (ROOT / path).exists() and not path.startswith(("..", f"{DOCS}/"))]
        waiting += [path for path in dict.fromkeys(new) if path not in pages and path not in waiting]
    return pages


def _listing(folder: str) -> tuple[str, list[str]]:
    """A page with the files of a folder, and those that have pages of their own."""
    rows, leads = [f"# {folder}", ""], []
    for path in _files(ROOT / folder):
        name = path.relative_to(ROOT / folder).as_posix()
        if path.stat().st_size <= LARGEST_BYTES and b"\0" not in path.read_bytes():
            leads.append(f"{folder}/{name}")
            rows.append(f"- [{name}]({name})")
        else:
            rows.append(f"- {name}, {path.stat().st_size:,} bytes")
    return "\n".join(rows) + "\n", leads


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith((".", "__pycache__")) for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden:
            yield path


def _source(path: str) -> str:
    """A page with the text of a file."""
    suffix = Path(path).suffix
    language = LANGUAGES.get(suffix, suffix[1:]) or Path(path).name.lower()
    text = (ROOT / path).read_text(encoding="utf-8")
    longest = max(map(len, re.findall(r"^~+", text, re.MULTILINE)), default=2)
    fence = "~" * max(3, longest + 1)
    return f"# {path}\n\n{fence}{language}\n{text.rstrip()}\n{fence}\n"


def on_files(files: Any, config: Any) -> Any:
    """Add a page for each file outside docs/ that a page leads to."""
    from mkdocs.structure.files import File

    starts = [f"{DOCS}/{file.src_uri}" for file in files if file.src_uri.endswith(".md")]
    for path, text in outside(starts).items():
        content = rewritten(text, path if not (ROOT / path).is_dir() else f"{path}/index.md")
        files.append(File.generated(config, page_of(path), content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Rewrite the links of a page of docs/; those of other pages are right already."""
    return markdown if page.file.generated_by else rewritten(markdown, f"{DOCS}/{page.file.src_uri}")
