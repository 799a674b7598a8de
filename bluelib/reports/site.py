"""``blue site``: build a static site of notebooks, figures and tables with Jupyter Book (MyST), or else with nbconvert.

Sources are staged into a folder that mirrors the repository, so links between files work in both. Plain pages are made
by nbconvert, with an index. They load MathJax from a CDN: without a network, formulas stay TeX.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from contextlib import chdir, suppress
from pathlib import Path
from posixpath import dirname, join, normpath, relpath

import nbformat
import yaml
from nbconvert import HTMLExporter
from nbformat.v4 import new_markdown_cell, new_notebook
from traitlets.config import Config

from ..io.paths import project_path
from ..io.writing import atomic_directory, atomic_file
from ..runs.execute import run_notebook

LANDING, GALLERY, INDEX = "docs/site/index.md", "figures/index.md", "index.md"
#: The file that marks a folder as a site, which a new site may replace. Hosts that know this file serve the folder's
#: files as they are.
MARK = ".nojekyll"
#: The command that runs Jupyter Book, in the folder with ``myst.yml``.
MYST = (sys.executable, "-m", "jupyter_book", "build", "--html")
#: Seconds that MyST may take to fetch its theme, and after that to build the site.
THEME_SECONDS, BUILD_SECONDS = 90, 1200

_NOT_RUN = "*Not run for this page: outputs are those kept with the notebook; the pictures that it draws are missing.*"


def build_site(output: Path, *, only: Sequence[str] = (), execute: bool = True, plain: bool = False) -> Path:
    """Build the site into ``output``, whole or not at all; it replaces a site that is already there.

    Args:
        output: folder; it must be new, empty, or a site.
        only: names of the notebooks to include; all by default.
        execute: run the notebooks that have changed (see :func:`executed`) with their default parameters. If false,
            notebooks are shown as committed, with the outputs of checked cells only.
        plain: make plain pages, without trying MyST.

    Returns:
        The path of the site's first page.

    Raises:
        ValueError: if a notebook is unknown, or ``output`` holds something other than a site.
        FileNotFoundError: if this runs outside a checkout of the project.
        ChildProcessError: if MyST fails for a reason other than being unable to fetch its theme.
    """
    if not project_path(LANDING).exists():
        raise FileNotFoundError(f"{project_path(LANDING)} does not exist: run this in a checkout of the project")
    known = sorted(path.stem for path in project_path("notebooks").glob("*.ipynb"))
    unknown = [name for name in only if name not in known]
    if unknown:
        raise ValueError(f"no notebook is called {', '.join(unknown)}; known: {', '.join(known)}")
    if output.exists() and any(output.iterdir()) and not (output / MARK).exists():
        raise ValueError(f"{output} already exists and is not a site: give another folder")
    notebooks = {
        name: executed(name) if execute else project_path("notebooks", f"{name}.ipynb")
        for name in known
        if name in (only or known)
    }
    with tempfile.TemporaryDirectory() as folder, atomic_directory(output) as site:
        stage = Path(folder)
        titles = stage_sources(stage, notebooks, note="" if execute else _NOT_RUN)
        if plain or not run_myst(stage, site):
            write_pages(stage, titles, site)
        (site / MARK).touch()
    return output / "index.html"


def executed(name: str) -> Path:
    """The executed copy of a notebook in ``results/raw/site``; made again if the notebook, the package, or what
    notebooks read (``results``, ``figures``) has changed since.

    The notebook runs in a temporary copy of these folders, so nothing in the checkout changes, and a run that fails
    leaves no executed copy.
    """
    kept, source = project_path("results", "raw", "site", f"{name}.ipynb"), project_path("notebooks", f"{name}.ipynb")
    read = [
        path
        for folder in (Path(__file__).parents[1], project_path("results"), project_path("figures"))
        for path in folder.rglob("*")
        if path.is_file() and not {"raw", "__pycache__"} & set(path.relative_to(folder).parts)
    ]
    if kept.exists() and kept.stat().st_mtime > max(path.stat().st_mtime for path in [source, *read]):
        return kept
    print(f"{name}: running", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for part in ("notebooks", "results", "figures"):
            if project_path(part).exists():
                shutil.copytree(project_path(part), Path(folder, part), ignore=shutil.ignore_patterns("raw"))
        with chdir(folder):
            run_notebook(name, {}, Path(folder, "executed.ipynb"))
        with atomic_file(kept) as temporary:
            shutil.copyfile(Path(folder, "executed.ipynb"), temporary)
    return kept


def stage_sources(stage: Path, notebooks: Mapping[str, Path], note: str = "") -> dict[str, str]:
    """Write the site's sources and ``myst.yml`` into ``stage``, with the files that they show or link to.

    Args:
        notebooks: the path of each notebook to show, by its name.
        note: a line of Markdown to put into each notebook.

    Returns:
        The pages' titles by the paths of their sources, in this order: the landing page, figures and tables, the
        report, other notebooks, tables, documents.
    """
    tables = {path: _titled(path) for path in _files("figures", "**/*.md")}
    texts = {LANDING: _titled(LANDING), GALLERY: _gallery(tables)}
    for name in sorted(notebooks, key=lambda name: (not name.endswith("_report"), name)):
        texts[f"notebooks/{name}.ipynb"] = _notebook(name, notebooks[name], note)
    texts |= tables | {path: _titled(path) for path in _files("docs", "*.md")}
    for path, text in texts.items():
        _write(stage / path, text)
        for target in re.findall(r"\]\(([^)#\s]+)", text):
            linked = normpath(join(dirname(path), target))
            if linked not in texts and not linked.startswith("..") and project_path(linked).is_file():
                (stage / linked).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(project_path(linked), stage / linked)
    settings = yaml.safe_load(project_path("docs", "site", "myst.yml").read_text(encoding="utf-8"))
    toc: dict[str, list] = {"Notebooks": [], "Figures": [], "Docs": []}
    for path in list(texts)[2:]:
        toc[path.split("/")[0].capitalize()].append({"file": path})
    settings["project"]["toc"] = [
        *({"file": path} for path in (LANDING, GALLERY)),
        *({"title": title, "children": files} for title, files in toc.items() if files),
    ]
    _write(stage / "myst.yml", yaml.safe_dump(settings, allow_unicode=True, sort_keys=False))
    return {path: _title(path, text) for path, text in texts.items()}


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _files(folder: str, pattern: str) -> list[str]:
    """Paths in the project."""
    return sorted(path.relative_to(project_path()).as_posix() for path in project_path(folder).glob(pattern))


def _title(path: str, text: str) -> str:
    """The first heading, without Markdown's marks; for a file without a heading, its name in words."""
    if path.endswith(".ipynb"):
        text = nbformat.reads(text, as_version=4).cells[0].source
    if found := re.search(r"^# +(.+)$", text, re.M):
        return re.sub(r"[`*]", "", found[1]).strip()
    return Path(path).stem.replace("_", " ").capitalize()


def _titled(path: str) -> str:
    """The text of a Markdown file, with a heading added if it has none."""
    text = project_path(path).read_text(encoding="utf-8")
    return text if text.startswith("# ") else f"# {_title(path, text)}\n\n{text}"


def _notebook(name: str, path: Path, note: str) -> str:
    """A notebook with the note, and without what needs a running kernel."""
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1:1] = [new_markdown_cell(note)] if note else []
    for number, cell in enumerate(notebook.cells):
        cell.id = f"{name}-{number}"  # MyST wants ids that no other notebook has
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    return nbformat.writes(notebook)


def _gallery(tables: Mapping[str, str]) -> str:
    """The page of all tables and pictures, by folder."""
    parts, pictures = ["# Figures and tables"], _files("figures", "**/*.png")
    for folder in sorted({dirname(path) for path in [*tables, *pictures]}):
        parts.append(f"## {folder}")
        inside = [path for path in tables if dirname(path) == folder]
        parts.append("\n".join(f"- [{_title(path, tables[path])}](../{path})" for path in inside))
        for path in pictures:
            if dirname(path) == folder:
                parts += [f"![{_title(path, '')}](../{path})", f"*{_title(path, '')}*"]
    return "\n\n".join(parts) + "\n"


def write_pages(stage: Path, titles: Mapping[str, str], site: Path) -> None:
    """Write the staged pages into ``site`` with nbconvert, along with an index and the files that the pages show."""
    shutil.copytree(stage, site, dirs_exist_ok=True, ignore=shutil.ignore_patterns("_build", "myst.*"))
    _write(site / INDEX, "# bluelib\n\n" + "\n".join(f"- [{title}]({path})" for path, title in titles.items()))
    plumbing = {"enabled": True, "remove_input_tags": ("hide-input",)}  # MyST folds these cells
    settings = Config({"HTMLExporter": {"exclude_anchor_links": True}, "TagRemovePreprocessor": plumbing})
    exporter, pages = HTMLExporter(config=settings), {INDEX: "bluelib", **titles}
    for path, title in pages.items():
        text = (site / path).read_text(encoding="utf-8")
        notebook = nbformat.reads(text, 4) if path.endswith(".ipynb") else new_notebook(cells=[new_markdown_cell(text)])
        if path != INDEX:
            notebook.cells.insert(0, new_markdown_cell(f"[All pages]({relpath(INDEX, dirname(path))})"))
        notebook.metadata["title"] = title
        html, _ = exporter.from_notebook_node(notebook)
        _write((site / path).with_suffix(".html"), _linked(html, path, pages))
    for path in pages:
        (site / path).unlink()


def _linked(html: str, path: str, pages: Collection[str]) -> str:
    """Point links at pages rather than their sources, and give headings the anchors that GitHub and MyST give them."""

    def link(match: re.Match[str]) -> str:
        page = normpath(join(dirname(path), match[1])) in pages
        return f'href="{Path(match[1]).with_suffix(".html") if page else match[1]}'

    def heading(match: re.Match[str]) -> str:
        anchor = re.sub(r"<[^>]*>|[^\w -]", "", match[2].lower()).replace(" ", "-")
        return f'<h{match[1]} id="{anchor}">{match[2]}</h{match[1]}>'

    return re.sub(r"<h(\d)>(.*?)</h\1>", heading, re.sub(r'href="([^":#]+)', link, html))


def run_myst(stage: Path, site: Path) -> bool:
    """Build ``stage`` with Jupyter Book into ``site``.

    Returns:
        Whether it was built; false, with a printed line, if MyST could not fetch its theme.

    Raises:
        ChildProcessError: if MyST took too long or failed otherwise; after a failure, with the end of its output.
    """
    log, built = stage / "myst.log", stage / "_build" / "html"
    environment = {"JB_ALLOW_NODEENV": "no", **os.environ}
    with log.open("wb") as file:
        process = subprocess.Popen(
            MYST, cwd=stage, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment, start_new_session=True
        )
        try:
            with suppress(subprocess.TimeoutExpired):
                process.wait(THEME_SECONDS)
            if not _without_theme(log):
                process.wait(BUILD_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise ChildProcessError(
                f"Jupyter Book takes more than {BUILD_SECONDS} s: use --plain to build the site without it"
            ) from error
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    if process.returncode == 0 and (built / "index.html").exists():
        shutil.copytree(built, site, dirs_exist_ok=True)
        return True
    if _without_theme(log):
        print("MyST cannot fetch its theme: plain pages by nbconvert instead", flush=True)
        return False
    end = log.read_text(encoding="utf-8", errors="replace").strip()[-2000:]
    raise ChildProcessError(
        f"Jupyter Book failed (status {process.returncode}): use --plain to build the site without it. "
        f"The end of its output:\n{end}"
    )


def _without_theme(log: Path) -> bool:
    """Whether MyST has begun to fetch a theme but has not received it."""
    text = log.read_text(encoding="utf-8", errors="replace")
    return "Querying template metadata" in text and "Saved template" not in text
