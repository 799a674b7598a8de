"""The site: whole, offline, with nothing broken in it, as files and in a browser."""

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
from bluelib.reports.pages import Bibliography, Page, mathml
from bluelib.reports.plots import plot_methods
from tests.support.browser import complaints

ROOT = Path(__file__).parents[2]
THEORY = "02_weight_shift_theory"
TAKEN = [
    "docs/performance.md",
    "figures/pocket/02_bounds.png",
    "figures/pocket/nullspace_pocket-llama.md",
    "figures/pocket/main_pocket-counterfact.md",
    "figures/pocket/main_pocket-counterfact.png",
    "figures/pocket/pareto.png",
    "figures/pocket/report.md",
    "results/benchmarks/edit_speed.json",
    f"notebooks/{THEORY}.ipynb",
]
SMALL = """# A small notebook

**What this notebook does.** It draws, with $x^2$. It links to `02_weight_shift_theory`, [nowhere](../nowhere.md)
and [elsewhere](https://arxiv.org/abs/2502.03748). **Cost.** None."""


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
        "import matplotlib.pyplot as plt, pandas as pd\nplt.plot([1, 2]); plt.show()",
        "pd.DataFrame({f'a column {i}': [i / 7] for i in range(20)})",
        "def plot_methods(frame):\n    plt.plot(frame)\n    plt.show()\nplot_methods([2, 1])",
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


@pytest.fixture
def in_project(project, monkeypatch) -> Path:
    monkeypatch.chdir(project)
    return project


def pages_of(folder: Path) -> dict[Path, BeautifulSoup]:
    return {path: BeautifulSoup(path.read_text(encoding="utf-8"), "html.parser") for path in folder.rglob("*.html")}


# --- the files ---------------------------------------------------------------------


def test_every_source_has_its_page(built):
    assert {path.relative_to(built).as_posix() for path in built.rglob("*.html")} == {
        "index.html",
        "docs/performance.html",
        "figures/index.html",
        "figures/pocket/nullspace_pocket-llama.html",
        "figures/pocket/main_pocket-counterfact.html",
        "figures/pocket/report.html",
        "notebooks/07_small.html",
        f"notebooks/{THEORY}.html",
    }
    assert (built / "results" / "benchmarks" / "edit_speed.json").exists()  # a page links to it


def test_every_link_and_image_resolves_inside_the_site(built):
    pages = pages_of(built)
    for path, page in pages.items():
        for tag in page.find_all(("a", "img", "link")):
            target = tag.get("href") or tag.get("src")
            if (tag.name == "a" and re.match("https?://", target)) or tag.get("rel") == ["icon"]:
                continue
            split = urlsplit(target)
            assert not split.scheme and not split.netloc, f"{path.name} loads {target}"
            file = (path.parent / unquote(split.path)).resolve() if split.path else path
            assert file.is_file() and file.is_relative_to(built.resolve()), f"{path.name} has a broken link {target}"
            if split.fragment:
                assert pages[built / file.relative_to(built.resolve())].find(id=split.fragment), (
                    f"{path.name}: {target}"
                )


def test_nothing_is_loaded_from_elsewhere(built):
    for path, page in pages_of(built).items():
        assert not page.find_all(("script", "iframe", "object")), path
    assert not re.search(r"url\((?!\"STIX)|@import|https?:", (built / "style.css").read_text(encoding="utf-8"))


def test_formulas_are_mathml_and_none_is_left(built):
    pages = pages_of(built)
    assert len(pages[built / "notebooks" / f"{THEORY}.html"].find_all("math")) > 150
    for path, page in pages.items():
        for code in page.find_all(("code", "pre")):
            code.decompose()
        assert "$" not in page.get_text() and "\\" not in page.get_text(), path


def test_numbers_of_equations_are_kept(built):
    theory = pages_of(built)[built / "notebooks" / f"{THEORY}.html"]
    assert [tag.get_text() for tag in theory.find_all(class_="tag")] == [f"({i})" for i in range(1, 10)]


def test_every_image_has_a_text(built):
    images = {path: page.find_all("img") for path, page in pages_of(built).items()}
    assert all(image["alt"].strip() for found in images.values() for image in found)
    small = images[built / "notebooks" / "07_small.html"]
    assert [image["alt"] for image in small] == [
        "Figure: A small notebook",
        plot_methods.__doc__.splitlines()[0],  # what the drawing function says
    ]


def test_every_page_is_reached_by_next_and_lists_all(built):
    pages, path, seen = pages_of(built), built / "index.html", []
    while path:
        seen.append(path)
        page = pages[path]
        assert len(page.find("nav", id="pages").find_all("a")) == len(pages)
        assert (
            page.find("nav", id="pages").find("a", attrs={"aria-current": "page"}).get_text() in page.title.get_text()
        )
        following = page.find("a", rel="next")
        path = (path.parent / following["href"]).resolve() if following else None
        if path:
            assert (path.parent / pages[path].find("a", rel="prev")["href"]).resolve() == seen[-1]
    assert set(seen) == set(pages)


def test_citations_and_references_are_resolved(built):
    landing = pages_of(built)[built / "index.html"]
    assert "[@" not in landing.get_text() and "{cite" not in landing.get_text() and ":::" not in landing.get_text()
    assert landing.find("a", href="#ref-meng2023memit").get_text() == "Meng et al., 2023"
    assert landing.find("a", href="#ref-hase2023localization").get_text() == "Hase et al. (2023)"
    assert "Mass-editing memory" in landing.find(id="ref-meng2023memit").get_text()
    assert landing.find("a", href="#fig-main").get_text() == "Figure 1"
    assert landing.find("figcaption").get_text().strip().startswith("Figure 1. Pocket scale")


def test_names_of_notebooks_are_links_and_links_to_nowhere_are_text(built):
    small = pages_of(built)[built / "notebooks" / "07_small.html"]
    assert small.find("a", string=THEORY)["href"] == f"{THEORY}.html"
    assert "nowhere" in small.find("main").get_text() and not small.find("a", string="nowhere")
    assert small.find("a", string="elsewhere")["href"] == "https://arxiv.org/abs/2502.03748"
    listed = pages_of(built)[built / "index.html"].find("main").find("a", href="notebooks/07_small.html")
    assert listed.parent.get_text().strip() == "A small notebook. It draws, with x2."


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


LOOK = """() => ({
    images: [...document.images].map(image => [image.getAttribute("src"), image.complete && image.naturalWidth, image.alt]),
    formulas: [...document.querySelectorAll("math")].map(math => math.getBoundingClientRect().width),
    namespaces: [...document.querySelectorAll("math, math *")].map(node => node.namespaceURI),
    font: document.fonts.check('16px "Formulas"'),
    wide: document.documentElement.scrollWidth - document.documentElement.clientWidth,
})"""


@pytest.mark.parametrize("width", [1280, 400])
def test_pages_load_without_errors_in_a_browser(width, built, server, browser):
    page = browser.new_page(viewport={"width": width, "height": 900})
    errors, requested = complaints(page, "error", "warning"), []
    page.on("request", lambda request: requested.append(request.url))
    formulas, images = 0, 0
    for path in built.rglob("*.html"):
        page.goto(f"{server}/{path.relative_to(built).as_posix()}", wait_until="load")
        page.evaluate("document.fonts.ready")
        seen = page.evaluate(LOOK)
        assert all(loaded and alt for _, loaded, alt in seen["images"]), (path, seen["images"])
        assert all(size > 0 for size in seen["formulas"]), path
        assert set(seen["namespaces"]) <= {"http://www.w3.org/1998/Math/MathML"}
        assert seen["font"] or not seen["formulas"]
        assert seen["wide"] <= 0, f"{path} is wider than the window"
        formulas, images = formulas + len(seen["formulas"]), images + len(seen["images"])
    assert formulas > 150 and images >= 5
    assert not errors
    assert all(url.startswith((server, "data:")) for url in requested), "a page asks another host"
    page.close()


def test_navigation_works_in_a_browser(built, server, browser):
    page = browser.new_page()
    page.goto(f"{server}/index.html")
    page.click("a[rel=next]")
    page.wait_for_url(f"{server}/figures/index.html")
    page.click("#pages a:has-text('A small notebook')")
    page.wait_for_url(f"{server}/notebooks/07_small.html")
    assert page.inner_text("h1") == "A small notebook"
    page.click("header a")
    page.wait_for_url(f"{server}/index.html")
    page.click("main a:has-text('Figure 1')")
    page.wait_for_url(f"{server}/index.html#fig-main")
    page.close()


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
    with pytest.raises(ValueError, match="is there and is no site"):
        site.build_site(tmp_path, execute=False)
    assert (tmp_path / "thesis.txt").exists()


def test_the_report_comes_first(in_project, tmp_path):
    write_notebook(tmp_path / "09_report.ipynb", "# The report")
    pages = site.stage_sources(tmp_path / "stage", {"09_report": tmp_path / "09_report.ipynb"})
    assert pages[:2] == [
        Page(site.LANDING, "What residual distribution does to a model, and what BLUE does instead"),
        Page("notebooks/09_report.ipynb", "The report"),
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
    assert BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser").find("nav", id="pages")


@pytest.mark.parametrize(
    ("text", "then", "message"),
    [
        ("myst.yml: 'title' must be a string", "exit 1", r"status 1.*--plain.*\n.*'title' must be a string"),
        (NO_THEME + "💾 Saved template to path _build\n⛔️ port in use", "exit 3", r"status 3(.|\n)*port in use"),
        ("❗ Node.js (node) is required to run Jupyter Book", "exit 1", "Node.js"),
        ("📚 Built 2 pages", "", "status 0"),  # without the pages
        ("📚 Built 2 pages", "sleep 60", "too slow"),
    ],
)
def test_other_failures_of_myst_are_errors(text, then, message, fake_myst, in_project, tmp_path, monkeypatch):
    fake_myst(text, then)
    if message == "too slow":
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


def test_myst_understands_the_sources(tmp_path):
    """All of the project's own, without a warning. Content only: a theme of our own stands in for the real one."""
    pytest.importorskip("jupyter_book", reason="Jupyter Book is not installed")
    if shutil.which("node") is None:
        pytest.skip("there is no Node.js")
    with chdir(ROOT):
        notebooks = {path.stem: path for path in sorted((ROOT / "notebooks").glob("*.ipynb"))}
        pages = site.stage_sources(tmp_path, notebooks)
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
    assert f"Built {len(pages)} pages" in done.stdout


# --- the parts ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tex", "parts"),
    [
        (r"\boxed{a}", ['<mrow class="boxed">']),
        (r"\Delta'", ["<mi>′</mi>", 'mathvariant="normal">Δ']),
        (r"\arg\min_x f", [">arg</mo>", "<munder>"]),
        (r"\lVert K\rVert", ['stretchy="false">‖']),
        (r"\left\lVert K\right\rVert", ['stretchy="true">‖']),
        (r"a := b", ["≔"]),
        (r"\operatorname{tr}\!\left[A\right]", ['width="-0.167em"']),
        (r"A \succeq B", [">⪰</mo>"]),
    ],
)
def test_formulas(tex, parts):
    text = re.sub(r' (?:fence|form)="\w+"', "", mathml(tex, "block"))
    for part in parts:
        assert part in text, text


@pytest.mark.parametrize("tex", [r"\nosuchcommand x", r"\left( a"])
def test_a_formula_that_is_not_understood_is_refused(tex):
    with pytest.raises(ValueError, match="the formula"):
        mathml(tex, "inline")


def test_an_unknown_citation_is_refused():
    bibliography = Bibliography(ROOT / "docs" / "site" / "references.bib")
    with pytest.raises(ValueError, match="no reference is called 'nobody2020'; known: li2025blue"):
        bibliography.cite("As is known [@meng2022rome; @nobody2020].", {})


def test_an_unknown_reference_or_image_is_refused(in_project, tmp_path):
    landing = in_project / site.LANDING
    text = landing.read_text(encoding="utf-8")
    try:
        for wrong, message in (("[](#fig-mein)", "nothing is called 'fig-mein'"), ("![x](no.png)", "image no.png")):
            landing.write_text(f"{text}\n\n{wrong}\n", encoding="utf-8")
            with pytest.raises(ValueError, match=f"docs/site/index.md: {message}"):
                site.build_site(tmp_path / "site", only=["07_small"], execute=False, plain=True)
    finally:
        landing.write_text(text, encoding="utf-8")
    assert not (tmp_path / "site").exists()
