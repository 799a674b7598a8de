"""The site: whole, with nothing broken in it, as files and in a browser."""

from __future__ import annotations

import functools
import http.server
import re
import shutil
import subprocess
import threading
from contextlib import chdir
from pathlib import Path
from urllib.parse import unquote, urlsplit

import nbformat
import pytest
from bs4 import BeautifulSoup

from bluelib.reports import site
from tests.support.browser import complaints

ROOT = Path(__file__).parents[2]
THEORY = "03_theory"
TAKEN = [
    "docs/performance.md",
    "figures/pocket/forest.png",
    "figures/pocket/improvement.png",
    "figures/pocket/main_pocket-counterfact.md",
    "figures/pocket/main_pocket-counterfact.png",
    "figures/pocket/pareto.png",
    "figures/pocket/report.md",
    "figures/small/pareto.png",
    "figures/toy.png",
    "results/benchmarks/edit_speed.json",
    f"notebooks/{THEORY}.ipynb",
    *(path.relative_to(ROOT).as_posix() for path in sorted(ROOT.glob(f"figures/*/{THEORY[:2]}_*.png"))),
]
SMALL = """# A small notebook

**What this notebook does.** It draws, with $x^2$."""
#: A formula that is set apart, or one in a line.
FORMULA = re.compile(r"\$\$(.+?)\$\$|\$([^$]+?)\$", re.S)
#: Where nbconvert's pages take MathJax and other scripts.
CDN = re.compile(r"https://(cdnjs\.cloudflare\.com|cdn\.jsdelivr\.net|unpkg\.com)/")


def write_notebook(path: Path, markdown: str, *code: str) -> None:
    cells = [nbformat.v4.new_markdown_cell(markdown), *map(nbformat.v4.new_code_cell, code)]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    """A checkout with little in it: one notebook of the project, run before, and a small one to run."""
    root = tmp_path_factory.mktemp("project")
    shutil.copytree(ROOT / "docs" / "site", root / "docs" / "site")
    for path in TAKEN:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, root / path)
    write_notebook(
        root / "notebooks" / "07_small.ipynb",
        SMALL,
        "import matplotlib.pyplot as plt\nplt.plot([1, 2]); plt.show()",
    )
    (root / "results" / "raw" / "site").mkdir(parents=True)
    shutil.copyfile(ROOT / "notebooks" / f"{THEORY}.ipynb", root / "results" / "raw" / "site" / f"{THEORY}.ipynb")
    return root


@pytest.fixture(scope="module")
def built(project) -> Path:
    """The plain site of the small checkout."""
    with chdir(project):
        site.build_site(project / "build" / "site", plain=True)
    return project / "build" / "site"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """The plain site of this checkout, without running its notebooks."""
    folder = tmp_path_factory.mktemp("whole") / "site"
    with chdir(ROOT):
        assert site.build_site(folder, execute=False, plain=True) == folder / "index.html"
    return folder


@pytest.fixture
def in_project(project, monkeypatch) -> Path:
    monkeypatch.chdir(project)
    return project


def pages_of(folder: Path) -> dict[Path, BeautifulSoup]:
    return {path: BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser") for path in folder.rglob("*.html")}


# --- the files ---------------------------------------------------------------------


def sources(root: Path) -> set[str]:
    """The files of a checkout that have a page."""
    found = [*root.glob("notebooks/*.ipynb"), *root.glob("docs/*.md"), *root.glob("figures/**/*.md")]
    return {path.relative_to(root).as_posix() for path in found} | {site.LANDING, site.GALLERY}


def test_every_source_has_its_page_and_the_index_names_it(whole):
    pages = pages_of(whole)
    expected = {re.sub(r"\.\w+$", ".html", path) for path in sources(ROOT)}
    assert {path.relative_to(whole).as_posix() for path in pages} == expected | {"index.html"}
    named = {link["href"]: link.get_text() for link in pages[whole / "index.html"].select("li a")}
    assert named.keys() == expected
    for target, title in named.items():
        page = pages[whole / target]
        assert page.title.get_text() == title
        assert page.h1.get_text() == title
        assert (whole / target).parent.joinpath(
            page.find("a", string="All pages")["href"]
        ).resolve() == whole / "index.html"
    assert not [path for path in sources(ROOT) if (whole / path).exists()], "sources are left in the site"


def test_every_link_and_image_resolves_inside_the_site(whole):
    pages, local = pages_of(whole), 0
    for path, page in pages.items():
        for tag in page.select("[href], [src]"):
            target = tag.get("href") or tag.get("src")
            if (tag.name == "a" and re.match("https?://", target)) or (tag.name == "script" and CDN.match(target)):
                continue
            split, local = urlsplit(target), local + 1
            assert not split.scheme and not split.netloc, f"{path.name} loads {target}"
            file = (path.parent / unquote(split.path)).resolve() if split.path else path
            assert file.is_file() and file.is_relative_to(whole), f"{path.name} has a broken link {target}"
            assert file.relative_to(whole).as_posix() not in sources(ROOT), f"{path.name} links to a source, {target}"
            if split.fragment and file in pages:
                assert pages[file].find(id=split.fragment), f"{path.name} has a broken link {target}"
    assert local > 300


def test_formulas_are_left_for_mathjax(whole):
    page = pages_of(whole)[whole / "notebooks" / f"{THEORY}.html"]
    assert any("mathjax" in script["src"].lower() for script in page.find_all("script", src=True))
    cells = nbformat.read(ROOT / "notebooks" / f"{THEORY}.ipynb", as_version=4).cells
    text = "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")
    formulas = [formula for block, inline in FORMULA.findall(text) if (formula := block or inline)]
    assert len(formulas) > 150
    shown = page.get_text()
    assert [formula for formula in formulas if formula not in shown] == []


def test_pictures_of_cells_are_in_the_page(built):
    (image,) = pages_of(built)[built / "notebooks" / "07_small.html"].find_all("img")
    assert image["src"].startswith("data:image/png;base64,") and image["alt"]


def test_plumbing_is_not_in_the_page(whole):
    """The cell that installs the library on Colab; what it prints would be."""
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        text = (whole / "notebooks" / path.with_suffix(".html").name).read_text(encoding="utf-8")
        assert "find_spec" in path.read_text(encoding="utf-8") and "find_spec" not in text, path.name


def test_the_gallery_has_every_table_and_picture(whole):
    gallery = pages_of(whole)[whole / "figures" / "index.html"]
    shown = {(whole / "figures" / image["src"]).resolve() for image in gallery.find_all("img")}
    pictures = {path.relative_to(ROOT) for path in ROOT.glob("figures/**/*.png")}
    assert pictures and shown == {whole / path for path in pictures}
    linked = {(whole / "figures" / link["href"]).resolve() for link in gallery.select("li a")}
    tables = {path.relative_to(ROOT).with_suffix(".html") for path in ROOT.glob("figures/**/*.md")}
    assert linked == {whole / path for path in tables}
    folders = [heading.get_text() for heading in gallery.find_all("h2")]
    assert folders == sorted({path.parent.as_posix() for path in pictures | tables})


def test_the_landing_page_names_every_notebook(whole):
    landing = pages_of(whole)[whole / "docs" / "site" / "index.html"]
    linked = {Path(link["href"]).stem for link in landing.select("li a")}
    assert linked == {path.stem for path in ROOT.glob("notebooks/*.ipynb")}
    assert not re.search(r"\[@|\{cite|:::|\)=", landing.body.get_text()), "only MyST understands this"


# --- in a browser ------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(built):
    handler = functools.partial(QuietHandler, directory=str(built))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@pytest.mark.browser
def test_pages_load_without_errors_in_a_browser(built, server, browser):
    page, asked, images = browser.new_page(), [], []
    page.route(CDN, lambda route: (asked.append(route.request.url), route.fulfill(content_type="text/javascript")))
    errors = complaints(page, "error", "warning")
    for path in built.rglob("*.html"):
        page.goto(f"{server}/{path.relative_to(built).as_posix()}", wait_until="load")
        seen = page.evaluate("[...document.images].map(image => [image.src, image.complete && image.naturalWidth])")
        assert all(width for _, width in seen), (path, seen)
        images += seen
    assert len(images) >= 4 and any("mathjax" in url.lower() for url in asked)
    page.goto(f"{server}/index.html")
    page.click("a:has-text('A small notebook')")
    page.wait_for_url(f"{server}/notebooks/07_small.html")
    page.click("a:has-text('All pages')")
    page.wait_for_url(f"{server}/index.html")
    page.close()
    assert not errors


# --- executed notebooks ------------------------------------------------------------


def test_a_notebook_is_run_again_only_if_something_has_changed(in_project, monkeypatch):
    ran = []

    def run(name, parameters, executed):
        assert Path.cwd() != in_project and not parameters
        assert not Path("results", "raw", "site").exists() and Path("results", "benchmarks").exists()
        ran.append(name)
        shutil.copyfile(f"notebooks/{name}.ipynb", executed)

    monkeypatch.setattr(site, "run_notebook", run)
    write_notebook(in_project / "notebooks" / "08_more.ipynb", "# More")
    kept = site.executed("08_more")
    assert kept == in_project / "results" / "raw" / "site" / "08_more.ipynb" and ran == ["08_more"]
    assert site.executed("08_more") == kept and len(ran) == 1
    write_notebook(in_project / "notebooks" / "08_more.ipynb", "# More, changed")
    site.executed("08_more")
    assert len(ran) == 2 and "changed" in kept.read_text()
    (in_project / "figures" / "new.json").write_text("{}")  # what notebooks may read
    site.executed("08_more")
    assert len(ran) == 3
    for path in (in_project / "figures" / "new.json", in_project / "notebooks" / "08_more.ipynb", kept):
        path.unlink()


def test_a_run_that_fails_is_not_taken_and_leaves_the_old_site(in_project, built):
    failing = in_project / "notebooks" / "08_fails.ipynb"
    write_notebook(failing, "# Fails", "print('before')", "raise ValueError('on purpose')")
    before = (built / "index.html").read_text(encoding="utf-8")
    try:
        with pytest.raises(Exception, match="on purpose"):
            site.build_site(built, only=["08_fails"], plain=True)
    finally:
        failing.unlink()
    assert not (in_project / "results" / "raw" / "site" / "08_fails.ipynb").exists()
    assert (built / "index.html").read_text(encoding="utf-8") == before


def test_notebooks_that_are_not_run_say_so(in_project, tmp_path):
    page = site.build_site(tmp_path / "site", only=["07_small"], execute=False, plain=True)
    assert page == tmp_path / "site" / "index.html"
    pages = pages_of(tmp_path / "site")
    assert "Not run for this page" in pages[tmp_path / "site" / "notebooks" / "07_small.html"].get_text()
    assert not (tmp_path / "site" / "notebooks" / f"{THEORY}.html").exists()


def test_what_cannot_be_built_is_refused(in_project, tmp_path):
    with pytest.raises(ValueError, match=f"no notebook is called 99; known: {THEORY}, 07_small"):
        site.build_site(tmp_path / "site", only=["99"], execute=False)
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(ValueError, match="already exists and is not a site"):
        site.build_site(tmp_path, execute=False)
    assert (tmp_path / "thesis.txt").exists()


def test_the_report_comes_first(in_project, tmp_path):
    for name in ("01_more", "12_report"):
        write_notebook(tmp_path / f"{name}.ipynb", f"# Notebook `{name}`")
    titles = site.stage_sources(
        tmp_path / "stage", {name: tmp_path / f"{name}.ipynb" for name in ("01_more", "12_report")}
    )
    assert list(titles.items())[:4] == [
        (site.LANDING, "What residual distribution does to a model, and what BLUE does instead"),
        (site.GALLERY, "Figures and tables"),
        ("notebooks/12_report.ipynb", "Notebook 12_report"),
        ("notebooks/01_more.ipynb", "Notebook 01_more"),
    ]


# --- MyST --------------------------------------------------------------------------

NO_THEME = """building myst-cli session with API URL: https://api.mystmd.org
🌎 Building Jupyter Book (via myst) site
🔍 Querying template metadata from https://api.mystmd.org/templates/site/myst/book-theme
request to https://api.mystmd.org/templates/site/myst/book-theme failed, reason: getaddrinfo ENOTFOUND api.mystmd.org
"""


@pytest.fixture
def fake_myst(monkeypatch, tmp_path):
    """``fake_myst(text, then)``: in place of Jupyter Book, a shell script that prints ``text`` and does ``then``."""

    def put(text: str, then: str) -> None:
        script = tmp_path / "myst.sh"
        script.write_text(f"cat <<'END'\n{text}\nEND\n{then}\n", encoding="utf-8")
        monkeypatch.setattr(site, "MYST", ("sh", str(script)))

    return put


def test_without_the_theme_pages_are_plain(fake_myst, in_project, tmp_path, capsys):
    fake_myst(NO_THEME, "exit 1")
    page = site.build_site(tmp_path / "site", only=["07_small"], execute=False)
    assert capsys.readouterr().out.strip() == "MyST cannot fetch its theme: plain pages by nbconvert instead"
    index = BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser")
    assert index.find("a", href="notebooks/07_small.html").get_text() == "A small notebook"


@pytest.mark.parametrize(
    ("text", "then", "message"),
    [
        ("myst.yml: 'title' must be a string", "exit 1", r"status 1.*--plain.*\n.*'title' must be a string"),
        (NO_THEME + "💾 Saved template to path _build\n⛔️ port in use", "exit 3", r"status 3(.|\n)*port in use"),
        ("❗ Node.js (node) is required to run Jupyter Book", "exit 1", "Node.js"),
        ("📚 Built 2 pages", "", "status 0"),  # without the pages
        ("📚 Built 2 pages", "sleep 60", "takes more than"),
    ],
)
def test_other_failures_of_myst_are_errors(text, then, message, fake_myst, in_project, tmp_path, monkeypatch):
    fake_myst(text, then)
    if then == "sleep 60":
        monkeypatch.setattr(site, "THEME_SECONDS", 0.5)
        monkeypatch.setattr(site, "BUILD_SECONDS", 0.5)
    with pytest.raises(ChildProcessError, match=message):
        site.build_site(tmp_path / "site", only=["07_small"], execute=False)
    assert not (tmp_path / "site").exists()


def test_a_theme_that_does_not_come_is_not_waited_for(fake_myst, tmp_path, monkeypatch, capsys):
    fake_myst("🔍 Querying template metadata from https://api.mystmd.org/templates", "sleep 60")
    monkeypatch.setattr(site, "THEME_SECONDS", 1)
    assert not site.run_myst(tmp_path, tmp_path / "site")
    assert "cannot fetch its theme" in capsys.readouterr().out


def test_what_myst_builds_is_the_site(fake_myst, in_project, tmp_path):
    fake_myst(
        "🔍 Querying template metadata\n💾 Saved template to path",
        "mkdir -p _build/html && printf 'by MyST' > _build/html/index.html",
    )
    page = site.build_site(tmp_path / "site", only=["07_small"], execute=False)
    assert page.read_text() == "by MyST"


@pytest.mark.slow
def test_myst_understands_the_sources(tmp_path):
    """All of the project's own, without a warning. Content only: a theme of our own stands in for the real one."""
    pytest.importorskip("jupyter_book", reason="Jupyter Book is not installed")
    if shutil.which("node") is None:
        pytest.skip("there is no Node.js")
    with chdir(ROOT):
        notebooks = {path.stem: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
        titles = site.stage_sources(tmp_path, notebooks)
    (tmp_path / "theme").mkdir()
    (tmp_path / "theme" / "template.yml").write_text(
        "myst: v1\nkind: site\ntitle: Stand-in\nversion: 1.0.0\nfiles: []\n"
    )
    settings = tmp_path / "myst.yml"
    settings.write_text(settings.read_text(encoding="utf-8").replace("template: book-theme", "template: ./theme"))
    done = subprocess.run(
        [*site.MYST[:-1], "--site", "--strict"],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and "⚠️" not in done.stdout + done.stderr, done.stdout + done.stderr
    assert f"Built {len(titles)} pages" in done.stdout
