"""``blue site``: notebooks, figures and tables as a static site: by Jupyter Book (MyST), or as plain pages without it.

Sources are staged into a folder that mirrors the repository, so that links between files hold in both.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import chdir
from importlib import import_module
from pathlib import Path
from types import ModuleType

import nbformat
import yaml

from ..io.paths import project_path
from ..io.writing import atomic_directory, atomic_file
from ..runs.notebooks import run_notebook
from ..studies import STUDIES
from . import figures, plots
from .pages import Page, write_pages

LANDING = "docs/site/index.md"
GALLERY = "figures/index.md"
#: A file that says that a folder is a site, which a new one may replace. Hosts that know it serve files as they are.
MARK = ".nojekyll"
#: How Jupyter Book is called, in the folder with ``myst.yml``.
MYST = (sys.executable, "-m", "jupyter_book", "build", "--html")
#: Seconds until MyST must have fetched its theme, and until it must be done after that.
THEME_SECONDS, BUILD_SECONDS = 90, 1200

_NOT_RUN = "*Not run for this page: only the outputs that the tests check are shown, and no pictures.*"


def build_site(output: Path, *, only: Sequence[str] = (), execute: bool = True, plain: bool = False) -> Path:
    """Build the site into ``output``, whole or not at all; a site that is there is replaced.

    Args:
        output: folder; it must be new, empty, or a site.
        only: names of the notebooks to take; all by default.
        execute: run the notebooks with their default parameters, those that have changed (see :func:`executed`);
            otherwise they are taken as they are kept, with the outputs of checked cells only.
        plain: make plain pages, without asking MyST.

    Returns:
        The file of its first page.

    Raises:
        ValueError: for an unknown notebook, or an ``output`` that holds something else.
        FileNotFoundError: outside a checkout of the project.
        ChildProcessError: if MyST fails other than by being unable to fetch its theme.
    """
    if not project_path(LANDING).exists():
        raise FileNotFoundError(f"{project_path(LANDING)} does not exist: run this in a checkout of the project")
    known = sorted(path.stem for path in project_path("notebooks").glob("*.ipynb"))
    unknown = [name for name in only if name not in known]
    if unknown:
        raise ValueError(f"no notebook is called {', '.join(unknown)}; known: {', '.join(known)}")
    if output.exists() and any(output.iterdir()) and not (output / MARK).exists():
        raise ValueError(f"{output} is there and is no site: give another folder")
    notebooks = {
        name: executed(name) if execute else project_path("notebooks", f"{name}.ipynb")
        for name in known
        if name in (only or known)
    }
    with tempfile.TemporaryDirectory() as folder, atomic_directory(output) as site:
        stage = Path(folder)
        pages = stage_sources(stage, notebooks, note="" if execute else _NOT_RUN)
        if plain or not run_myst(stage, site):
            write_pages(stage, pages, site)
        (site / MARK).touch()
    return output / "index.html"


def executed(name: str) -> Path:
    """The executed copy of a notebook in ``results/raw/site``; made anew if the notebook, the package, or what
    notebooks read (``results``, ``figures``) has changed since.

    The notebook runs in a temporary copy of these folders, so that nothing in the checkout changes, and a run that
    fails leaves no copy.
    """
    kept = project_path("results", "raw", "site", f"{name}.ipynb")
    sources = (Path(__file__).parents[1], project_path("results"), project_path("figures"))
    changed = max(map(_modified, [project_path("notebooks", f"{name}.ipynb"), *_files(sources)]))
    if kept.exists() and _modified(kept) > changed:
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


def _files(folders: Iterable[Path]) -> Iterable[Path]:
    """Files below ``folders``, without those that runs leave behind."""
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_file() and not {"raw", "__pycache__"} & set(path.relative_to(folder).parts):
                yield path


def _modified(path: Path) -> float:
    return path.stat().st_mtime


def stage_sources(stage: Path, notebooks: Mapping[str, Path], note: str = "") -> list[Page]:
    """Write the site's sources and ``myst.yml`` into ``stage``.

    Args:
        notebooks: by name, the notebook to show.
        note: a line of Markdown to put into each notebook.

    Returns:
        The pages, the landing page first.
    """
    read = {name: nbformat.read(path, as_version=4) for name, path in notebooks.items()}
    titles = {name: _heading(notebook.cells[0].source) or name for name, notebook in read.items()}
    report = [name for name in titles if name.endswith("_report")]
    folder = project_path("figures")
    tables = {
        path.relative_to(folder).as_posix(): _table_page(path)
        for path in sorted([*folder.glob("*.md"), *folder.glob("pocket/*.md")])
    }
    documents = {path: path.read_text(encoding="utf-8") for path in sorted(project_path("docs").glob("*.md"))}
    landing = project_path(LANDING).read_text(encoding="utf-8").replace("<!-- notebooks -->", _listing(read, titles))
    texts = {
        LANDING: landing,
        GALLERY: _gallery(titles, tables),
        **{f"figures/{name}": text for name, text in tables.items()},
        **{f"docs/{path.name}": text for path, text in documents.items()},
    }
    pages = [
        Page(LANDING, _heading(landing)),
        *(Page(f"notebooks/{name}.ipynb", titles[name]) for name in report),
        Page(GALLERY, _heading(texts[GALLERY])),
        *(Page(f"notebooks/{name}.ipynb", titles[name], "Notebooks") for name in titles if name not in report),
        *(Page(f"figures/{name}", _heading(text), "Tables") for name, text in tables.items()),
        *(Page(f"docs/{path.name}", _heading(text), "Documents") for path, text in documents.items()),
    ]
    for path, text in texts.items():
        _write(stage / path, _linked(text, path, titles))
    for name, notebook in read.items():
        path = f"notebooks/{name}.ipynb"
        _describe_outputs(notebook)
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                cell.source = _linked(cell.source, path, titles)
        if note:
            notebook.cells.insert(1, nbformat.v4.new_markdown_cell(note))
        for number, cell in enumerate(notebook.cells):
            cell.id = f"{name}-{number}"  # MyST wants ids that no other notebook has
        _write(stage / path, nbformat.writes(notebook))
        texts[path] = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    for path, text in texts.items():
        _copy_linked(stage, path, text)
    for name in ("references.bib", "page.html", "style.css"):
        shutil.copyfile(project_path("docs", "site", name), stage / "docs" / "site" / name)
    settings = yaml.safe_load(project_path("docs", "site", "myst.yml").read_text(encoding="utf-8"))
    settings["project"]["toc"] = _contents(pages)
    _write(stage / "myst.yml", yaml.safe_dump(settings, allow_unicode=True, sort_keys=False))
    return pages


def _contents(pages: Sequence[Page]) -> list[dict]:
    """MyST's table of contents: pages without a group first, then the groups."""
    contents: list[dict] = [{"file": page.path} for page in pages if not page.group]
    for group in dict.fromkeys(page.group for page in pages if page.group):
        contents.append({"title": group, "children": [{"file": page.path} for page in pages if page.group == group]})
    return contents


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def _heading(text: str) -> str:
    """The first heading of level one, without Markdown's marks."""
    found = re.search(r"^# +(.+)$", text, re.M)
    return re.sub(r"[`*]", "", found[1]).strip() if found else ""


def _listing(notebooks: Mapping[str, nbformat.NotebookNode], titles: Mapping[str, str]) -> str:
    """A list of the notebooks; of each, the first sentence of what it does."""
    lines = []
    for name, notebook in notebooks.items():
        about = re.search(r"\*\*What this notebook does\.\*\* +(.+?[.!?])(?= +[A-Z]|$)", notebook.cells[0].source, re.M)
        lines.append(f"- [{titles[name]}](../../notebooks/{name}.ipynb). {about[1] if about else ''}".rstrip())
    return "\n".join(lines)


def _table_page(path: Path) -> str:
    """A table of ``figures`` with a heading made from the file's name, and with its picture if there is one."""
    text = path.read_text(encoding="utf-8")
    if not _heading(text):
        kind, *rest = path.stem.split("_")
        text = f"# {': '.join(filter(None, (kind.capitalize(), ', '.join(rest))))}\n\n{text}"
    if path.with_suffix(".png").exists():
        text += f"\n\n![{_heading(text)}, as a picture]({path.stem}.png)\n"
    return text


def _gallery(titles: Mapping[str, str], tables: Mapping[str, str]) -> str:
    """The page of all figures of the analysis, under the titles of their notebooks, and of all tables."""
    parts = [
        "# Figures and tables",
        "Drawn from the numbers in the repository's `figures` and `results` folders by `blue draw` and "
        "`blue tables`. Every picture and every table says which scale it has.",
    ]
    for study in STUDIES.values():
        name, drawn = study.notebook, figures.functions(study.name)
        there = {
            stem: draw for stem, draw in drawn.items() if project_path("figures", "pocket", f"{stem}.png").exists()
        }
        if name in titles and there:
            parts.append(f"## {titles[name]}\n\nFrom [`{name}`](../notebooks/{name}.ipynb), at a larger size.")
            parts += [f"![{_about(draw)}](pocket/{stem}.png)\n\n*{_about(draw)}*" for stem, draw in there.items()]
    if tables:
        parts.append("## Tables")
        parts.append("\n".join(f"- [{_heading(text)}]({name})" for name, text in tables.items()))
    return "\n\n".join(parts) + "\n"


def _about(draw) -> str:
    """The first line of a drawing function's docstring: what the figure shows."""
    return draw.__doc__.strip().splitlines()[0]


def _drawing_functions(*modules: ModuleType) -> dict[str, str]:
    """By name, what the figures of these modules' public functions show."""
    return {
        name: _about(function)
        for module in modules
        for name, function in vars(module).items()
        if not name.startswith("_") and getattr(function, "__annotations__", {}).get("return") == "Figure"
    }


def _describe_outputs(notebook: nbformat.NotebookNode) -> None:
    """Give every output image a text: what the cell's drawing function says, or else the heading above. Parts of
    outputs that need a running kernel are dropped."""
    modules = [import_module(f"{figures.__name__}.{study}") for study in STUDIES]
    about, heading = _drawing_functions(*modules, plots), ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            heading = (re.findall(r"^#+ +(.+)$", cell.source, re.M) or [heading])[-1]
            continue
        drawn = [about[name] for name in re.findall(r"\w+(?=\()", cell.source) if name in about]
        for output in cell.get("outputs", []):
            for kind in ("application/vnd.jupyter.widget-view+json", "application/javascript"):
                output.get("data", {}).pop(kind, None)
            if any(kind.startswith("image/") for kind in output.get("data", {})):
                output.metadata["alt"] = drawn.pop(0) if drawn else f"Figure: {heading}"


def _linked(text: str, path: str, names: Iterable[str]) -> str:
    """Make links of notebooks' names and of figures' file names in code spans."""
    up = "../" * path.count("/")
    for name in names:
        if path != f"notebooks/{name}.ipynb":
            text = re.sub(rf"(?<![\[`])`{name}(\.ipynb)?`(?![\]`])", rf"[\g<0>]({up}notebooks/{name}.ipynb)", text)
    return re.sub(r"(?<![\[`])`figures/[^`\n]*\.png`(?![\]`])", rf"[\g<0>]({up}{GALLERY})", text)


def _copy_linked(stage: Path, path: str, text: str) -> None:
    """Copy the files of the repository that a page shows or links to and that are not pages themselves."""
    for target in re.findall(r"\]\(([^)#\s]+)|^:::\{figure\} (\S+)$", text, re.M):
        relative = os.path.normpath(os.path.join(os.path.dirname(path), "".join(target)))
        source, copy = project_path(relative), stage / relative
        if not relative.startswith("..") and source.is_file() and not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, copy)


def run_myst(stage: Path, site: Path) -> bool:
    """Build ``stage`` with Jupyter Book into ``site``.

    Returns:
        Whether it was built; false if MyST could not fetch its theme, which is said in a line.

    Raises:
        ChildProcessError: if MyST failed otherwise, with the end of what it printed.
    """
    log = stage / "myst.log"
    environment = {"JB_ALLOW_NODEENV": "no", **os.environ}
    with (
        log.open("wb") as file,
        subprocess.Popen(
            MYST,
            cwd=stage,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        ) as process,
    ):
        try:
            try:
                code: int | None = process.wait(THEME_SECONDS)
            except subprocess.TimeoutExpired:
                code = None if _without_theme(log) else process.wait(BUILD_SECONDS)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    built = stage / "_build" / "html"
    if code == 0 and (built / "index.html").exists():
        shutil.copytree(built, site, dirs_exist_ok=True)
        return True
    if _without_theme(log):
        print("MyST cannot fetch its theme: plain pages by nbconvert instead", flush=True)
        return False
    end = log.read_text(encoding="utf-8", errors="replace").strip()[-2000:]
    why = "too slow" if code is None else f"status {code}"
    raise ChildProcessError(f"Jupyter Book failed ({why}); --plain does without. The end of what it printed:\n{end}")


def _without_theme(log: Path) -> bool:
    """Whether MyST has begun to fetch a theme and has not got it."""
    text = log.read_text(encoding="utf-8", errors="replace")
    return "Querying template metadata" in text and "Saved template" not in text
