"""JupyterLab and Voilà in a real browser: the quickstart and the demo run, are clicked through, and look right.

Screenshots are left in ``build/screenshots``.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import HTTPError, URLError
from urllib.request import urlopen

import nbformat
import pytest

from tests.support.browser import complaints

pytestmark = pytest.mark.browser
ROOT = Path(__file__).parents[2]
SCREENSHOTS = ROOT / "build" / "screenshots"
#: Milliseconds for anything to happen; second moments may have to be measured first.
PATIENCE = 90_000


def toy() -> nbformat.NotebookNode:
    """Of the theory's notebook what the toy with the sliders needs, and nothing that takes a model."""
    theory = nbformat.read(ROOT / "notebooks" / "03_theory.ipynb", as_version=4)
    code = [cell for cell in theory.cells if cell.cell_type == "code"]
    (sliders,) = [cell for cell in code if "Sliders(" in cell.source]
    imports = next(cell for cell in code if "from bluelib" in cell.source)
    theory.cells = [imports, sliders]
    return theory


def serve(folder: Path, ready: str, *command: str):
    """Start a server on loopback, with settings of its own and a copy of the notebooks and what their text shows;
    yields its address."""
    for name in ("notebooks", "docs", "figures"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns(".*"))
    nbformat.write(toy(), folder / "notebooks" / "toy.ipynb")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    settings = {f"JUPYTER_{name}_DIR": str(folder / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    log = folder / "server.log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command, f"--port={port}", "--no-browser"],
            cwd=folder,
            env={**os.environ, **settings},
            stdout=output,
            stderr=output,
        )
    try:
        for _ in range(600):
            try:
                urlopen(f"http://127.0.0.1:{port}{ready}", timeout=10).close()
                break
            except HTTPError:
                break
            except URLError:
                assert process.poll() is None, log.read_text()
                time.sleep(0.1)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(timeout=30)


@pytest.fixture(scope="module")
def real_model():
    """The quickstart's model and what MEMIT needs of it, so that a reader's first download is not what is timed."""
    for arguments in (["download", "smollm2-135m"], ["statistics", "--model", "smollm2-135m", "--editor", "memit"]):
        subprocess.run([sys.executable, "-m", "bluelib.cli", *arguments], check=True, capture_output=True)


@pytest.fixture(scope="module")
def lab(tmp_path_factory, real_model):
    yield from serve(
        tmp_path_factory.mktemp("lab"),
        "/api",
        "jupyterlab",
        "--allow-root",
        "--ServerApp.ip=127.0.0.1",
        "--ServerApp.token=",
        "--LabApp.expose_app_in_browser=True",
        "--LabApp.news_url=",
    )


@pytest.fixture(scope="module")
def voila(tmp_path_factory, real_model):
    yield from serve(
        tmp_path_factory.mktemp("voila"), "/voila/static/style.css", "voila", "notebooks/demo_edit_a_fact.ipynb"
    )


@pytest.fixture
def page(browser):
    """A page, and afterwards the check that nothing went wrong in it."""
    opened = browser.new_page(viewport={"width": 1300, "height": 1250})
    opened.set_default_timeout(PATIENCE)
    # Voilà's template takes its icons from a server elsewhere; a test asks nobody.
    opened.route(lambda url: "127.0.0.1" not in url, lambda route: route.fulfill(body="", content_type="text/css"))
    errors = complaints(opened, "error")
    yield opened
    opened.close()
    assert not errors


def shoot(what, name: str) -> None:
    """Keep a picture of a page, or of an element of it."""
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    what.screenshot(path=SCREENSHOTS / f"{name}.png")


#: The open notebook's code cells, as they are in JupyterLab's model: those out of sight are not in the page.
CELLS = (
    """() => window.jupyterapp.shell.currentWidget.content.model.toJSON().cells.filter(c => c.cell_type == 'code')"""
)
DONE = """() => {
    const cells = window.jupyterapp.shell.currentWidget?.content?.model?.toJSON().cells ?? [];
    const code = cells.filter(c => c.cell_type == 'code');
    return code.some(c => c.outputs.some(o => o.output_type == 'error'))
        || (code.length && code.every(c => c.execution_count > 0) && document.querySelector('[data-status=idle]'));
}"""


def command(page, name: str) -> None:
    """Have JupyterLab do something; a dialog that it opens about that, and waits for, is closed after a while: a script
    in a page has no time limit of its own."""
    done = f"window.jupyterapp.commands.execute('{name}').then(() => true)"
    if not page.evaluate(f"() => Promise.race([{done}, new Promise(end => setTimeout(() => end(false), 20000))])"):
        page.keyboard.press("Escape")


def run_all(page, lab: str, notebook: str) -> list[dict]:
    """Open a notebook in JupyterLab, choose "Run All Cells" from the menu, and wait for the last one."""
    page.goto(f"{lab}/lab/tree/notebooks/{notebook}?reset")
    page.wait_for_selector(".jp-Notebook .jp-Cell")
    page.wait_for_selector("[data-status=idle]")
    command(page, "notebook:clear-all-cell-outputs")
    command(page, "docmanager:save")
    page.click("text=Run >> nth=0")
    page.click("li[data-command='runmenu:run-all']")
    page.wait_for_function(DONE, timeout=4 * PATIENCE)
    return page.evaluate(CELLS)


def test_the_quickstart_runs_in_jupyterlab(lab, page):
    cells = run_all(page, lab, "00_quickstart.ipynb")
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"], "warnings would meet the reader"
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert any("MEMIT_BLUE" in output.get("text", "") for output in outputs)
    page.wait_for_selector(".jp-RenderedImage img")
    page.locator(".jp-RenderedImage img").first.scroll_into_view_if_needed()
    shoot(page, "jupyterlab")


def test_the_theory_s_sliders_move_the_picture(lab, page):
    cells = run_all(page, lab, "toy.ipynb")
    assert not [output for cell in cells for output in cell["outputs"] if output["output_type"] == "error"]
    picture = page.locator(".jupyter-widgets img").first
    picture.wait_for(state="visible")
    handles = page.locator(".noUi-handle")
    assert handles.count() == 3, "an angle, a share and λ"
    seen = {picture.get_attribute("src")}
    for number in range(3):
        handles.nth(number).focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_function(
            "seen => { const i = document.querySelector('.jupyter-widgets img'); return i && !seen.includes(i.src); }",
            arg=list(seen),
        )
        seen.add(picture.get_attribute("src"))
    picture.scroll_into_view_if_needed()
    shoot(page, "theory")


def fill(page, label: str, value: str) -> None:
    field = page.locator(".bluelib-edit-page").get_by_label(label)
    field.fill(value)
    field.press("Enter")


def press(page, button: str) -> None:
    page.click(f".bluelib-edit-page button:has-text('{button}')")


def click_through(page, name: str) -> None:
    """The demo as a visitor has it: edit, be told what is wrong, edit a subject of one's own, undo."""
    message, problem = ".bluelib-edit-page [role=status]", ".bluelib-edit-page [role=alert]"
    page.wait_for_selector(f"{message}:has-text('Spanish')", timeout=4 * PATIENCE)
    shoot(page, f"{name}_before")
    press(page, "Edit")
    page.wait_for_selector(f"{message}:has-text('MEMIT: edit 1 of 1')")
    shoot(page, f"{name}_during")
    page.wait_for_selector(f"{message}:has-text('MEMIT_BLUE: the edit holds')", timeout=4 * PATIENCE)
    table = page.locator(".bluelib-edit-page table")
    assert table.locator("tr").count() == 10 and table.locator("b:has-text('Polish')").count() > 4
    picture = page.locator(".bluelib-edit-page img")
    picture.wait_for(state="visible")
    page.wait_for_function("() => document.querySelector('.bluelib-edit-page img').naturalWidth > 900")
    page.set_viewport_size({"width": 1300, "height": 1550})  # all of it
    shoot(page.locator(".bluelib-edit-page"), f"{name}_after")

    fill(page, "Subject", "Nicaragu")
    page.wait_for_selector(f"{message}:has-text('Did you mean Nicaragua')")
    fill(page, "Subject", "Wales")
    page.wait_for_selector(f"{message}:has-text('No record is about “Wales”')")
    fill(page, "New object", " ")
    press(page, "Edit")
    page.wait_for_selector(f"{problem}:has-text('The new object is empty')")
    fill(page, "New object", "Oslo")
    press(page, "Edit")
    page.wait_for_selector(f"{problem}:has-text('does not mention the subject “Wales”')")
    fill(page, "Prompt", "The capital of Wales is")
    press(page, "Edit")
    page.wait_for_selector(f"{message}:has-text('1 of 1 earlier edits still hold')", timeout=4 * PATIENCE)
    shoot(page, f"{name}_second")
    assert page.locator(".bluelib-edit-page li").count() == 2
    press(page, "Undo")
    page.wait_for_function("() => document.querySelectorAll('.bluelib-edit-page li').length == 1")
    press(page, "Undo")
    page.wait_for_selector(f"{message}:has-text('The model is unedited')")
    assert not picture.is_visible() and not table.is_visible()


def test_the_demo_is_a_page_of_its_own(voila, page):
    page.goto(voila, timeout=4 * PATIENCE)  # the whole notebook runs first
    click_through(page, "demo")
    assert page.locator(".jp-InputArea-editor").count() == 0, "no code on the page"


def test_the_demo_works_in_jupyterlab(lab, page):
    cells = run_all(page, lab, "demo_edit_a_fact.ipynb")
    assert not [o for cell in cells for o in cell["outputs"] if o["output_type"] == "error"]
    page.locator(".jp-Notebook .jp-Cell").first.scroll_into_view_if_needed()
    page.evaluate("() => { const n = window.jupyterapp.shell.currentWidget.content; n.activeCellIndex = 4; }")
    page.evaluate("() => { const n = window.jupyterapp.shell.currentWidget.content; n.scrollToItem(4, 'start'); }")
    click_through(page, "demo_jupyterlab")
