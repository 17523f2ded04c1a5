"""The site that `make docs` builds: pages can be reached, links lead somewhere, figures have a source."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import yaml


def module(root: Path, name: str) -> ModuleType:
    """A module of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location(name, root / "docs" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture(scope="module")
def outside(root: Path) -> ModuleType:
    return module(root, "outside")


class Settings(yaml.SafeLoader):
    """Reads mkdocs.yml without the Python object in it."""


Settings.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)


def navigation(root: Path) -> list[str]:
    """The pages in the navigation of mkdocs.yml, in their order."""
    waiting = [yaml.load((root / "mkdocs.yml").read_text(encoding="utf-8"), Settings)["nav"]]
    pages = []
    while waiting:
        entry = waiting.pop(0)
        if isinstance(entry, str):
            pages.append(entry)
        else:
            waiting = [*(entry.values() if isinstance(entry, dict) else entry), *waiting]
    return pages


def pages(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in (root / "docs").rglob("*.md"))


def anchors(text: str) -> set[str]:
    """The anchors of a page's headings, as the forge and the site make them."""
    headings = re.findall(
        r"^#+ +(.+?) *$", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), re.MULTILINE
    )
    plain = [re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings]
    return {"#" + re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in plain}


def test_every_page_is_in_the_navigation_once_and_on_the_first_page(root: Path, outside: ModuleType) -> None:
    named = [page for page in navigation(root) if not page.startswith("project/")]
    assert sorted(named) == [page.removeprefix("docs/") for page in pages(root)]
    first = {link for link, _ in outside.links((root / "docs" / "index.md").read_text(encoding="utf-8"))}
    assert set(named) - first == {"index.md"}


def test_the_navigation_names_no_page_that_nothing_makes(root: Path, outside: ModuleType) -> None:
    made = {outside.page_of(path) for path in outside.outside(pages(root))}
    assert {page for page in navigation(root) if page.startswith("project/")} <= made


def test_every_link_of_every_page_of_the_site_leads_to_a_file_and_a_heading(root: Path, outside: ModuleType) -> None:
    found = pages(root)
    sources = [*found, *(path for path in outside.outside(found) if path.endswith(".md"))]
    assert "ARCHITECTURE.md" in sources
    lost = []
    for origin in sources:
        for link, anchor in outside.links((root / origin).read_text(encoding="utf-8")):
            path = root / outside.target(origin, link)
            if not path.exists() or (anchor and anchor not in anchors(path.read_text(encoding="utf-8"))):
                lost.append((origin, link + anchor))
    assert lost == []


@pytest.mark.parametrize(
    ("origin", "text", "in_the_site"),
    [
        ("docs/a.md", "[x](../ARCHITECTURE.md#folders)", "[x](project/ARCHITECTURE.md#folders)"),
        ("docs/a.md", "[x](../examples/client.py)", "[x](project/examples/client.py.md)"),
        ("docs/a.md", "[x](../examples)", "[x](project/examples/index.md)"),
        ("docs/a.md", "[x](folding.md#how-exact)", "[x](folding.md#how-exact)"),
        ("README.md", "[x](docs/folding.md)", "[x](../folding.md)"),
        ("benches/serving/RESULTS.md", "[x](../../docs/bench.md)", "[x](../../../bench.md)"),
        ("docs/a.md", "[x](https://onnx.ai/a.md)", "[x](https://onnx.ai/a.md)"),
        ("docs/a.md", "[x](missing.md)", "[x](missing.md)"),
        ("docs/a.md", "```\n[x](../examples)\n```", "```\n[x](../examples)\n```"),
    ],
)
def test_a_link_is_rewritten_for_the_site(outside: ModuleType, origin: str, text: str, in_the_site: str) -> None:
    assert outside.rewritten(text, origin) == in_the_site


def test_only_pages_of_docs_are_rewritten_a_second_time(outside: ModuleType) -> None:
    text = "[x](../examples)"
    for generated, expected in ((None, "[x](project/examples/index.md)"), ("hooks", text)):
        page = SimpleNamespace(file=SimpleNamespace(src_uri="a.md", generated_by=generated))
        assert outside.on_page_markdown(text, page=page, config=None, files=None) == expected


@pytest.fixture
def docstrings(root: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """docs/docstrings.py with as much of griffe as it uses: griffe itself is installed by `make docs` only."""
    griffe = SimpleNamespace(Extension=object, Docstring=lambda text, lineno, parent: SimpleNamespace(value=text))
    monkeypatch.setitem(sys.modules, "griffe", griffe)
    return module(root, "docstrings")


def test_a_field_is_described_by_the_comment_above_it(docstrings: ModuleType, tmp_path: Path) -> None:
    file = tmp_path / "settings.py"
    file.write_text(
        "class A:\n    #: Seconds,\n    #: at most 5.\n    wait: int = 3\n    other: int = 4\n", encoding="utf-8"
    )
    extension = docstrings.Docstrings()
    described = []
    for line in (4, 5):
        attr = SimpleNamespace(docstring=None, lineno=line, filepath=file)
        extension.on_attribute_instance(attr=attr)
        described.append(attr.docstring and attr.docstring.value)
    assert described == ["Seconds,\nat most 5.", None]


def test_a_docstring_is_written_in_markdown(docstrings: ModuleType) -> None:
    obj = SimpleNamespace(
        docstring=SimpleNamespace(value="See :func:`~a.fold`.\n\nTop\n├── A   one\n└── B   two\n\n    ├── C")
    )
    docstrings.Docstrings().on_object(obj=obj)
    assert obj.docstring.value == "See `a.fold`.\n\n    Top\n    ├── A   one\n    └── B   two\n\n    ├── C"
    docstrings.Docstrings().on_object(obj=SimpleNamespace(docstring=None))


def test_a_folder_becomes_a_list_and_a_source_file_a_page_with_its_text(root: Path, outside: ModuleType) -> None:
    made = outside.outside(pages(root))
    assert "- [client.py](client.py)" in made["examples"]
    assert (root / "examples" / "client.py").read_text(encoding="utf-8").rstrip() in made["examples/client.py"]
    assert not any("__pycache__" in path or path.startswith("docs/") for path in made)


def test_every_name_of_the_reference_is_in_the_code(root: Path) -> None:
    from importlib import import_module

    named = [
        name for page in pages(root) for name in re.findall(r"^::: (\S+)$", (root / page).read_text("utf-8"), re.M)
    ]
    for name in named:
        home, _, last = name.rpartition(".")
        assert hasattr(import_module(home), last) or import_module(name), name
    import normfold

    assert {name.rpartition(".")[2] for name in named} >= set(normfold.__all__) - {"ExportError", "__version__"}
    assert {"normfold.export.errors", "normfold.serving.errors", "normfold.serving.settings.ServerConfig"} <= set(named)


def test_every_figure_of_the_comparison_is_in_the_results_it_names(root: Path, outside: ModuleType) -> None:
    text = (root / "docs" / "comparison.md").read_text(encoding="utf-8")
    checked = 0
    for section in text.split("\n## ")[1:]:
        results = [link for link, _ in outside.links(section) if link.endswith("RESULTS.md")]
        if results:
            known = set(re.findall(r"\d[\d,.]*\d|\d", (root / "docs" / results[0]).read_text(encoding="utf-8")))
            for row in re.findall(r"^\| (?!tool|server|normfold's|-)(.*) \|$", section, re.MULTILINE):
                figures = [cell for cell in row.split(" | ")[1:] if not cell.startswith("-")]
                assert set(figures) <= known, row
                checked += len(figures)
    assert checked > 60


def test_the_first_page_says_what_the_exporter_of_torch_does(root: Path) -> None:
    text = (root / "docs" / "index.md").read_text(encoding="utf-8")
    assert "torch 2.13.0:" in text
    assert "torch==2.13.0" in (root / "constraints.txt").read_text(encoding="utf-8"), (
        "run it again, and say what it does"
    )
    (block,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    run = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, timeout=250, check=False)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == re.findall(r"^print\(.*\)  # (.*)$", block, re.MULTILINE)
    messages = re.sub(r"^[A-Z]\d{4} [\d:.]+ \d+ \S+\] ", "", run.stderr, flags=re.MULTILINE)  # the time may be .250000
    assert not re.search(r"\b250\b", messages), "it warns now: the page says that it does not"


def test_the_citation_is_that_of_this_version(root: Path) -> None:
    citation = yaml.safe_load((root / "CITATION.cff").read_text(encoding="utf-8"))
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    assert citation["cff-version"] == "1.2.0"
    assert citation["title"] == project["name"]
    assert citation["version"] == project["version"]
    assert citation["license"] == project["license"]
