"""JupyterLab in a browser: what a person sees of a notebook while it runs, and afterwards.

With `GENMLX_PICTURES=FOLDER` the README's picture of it is written there.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest
from jupyter_home import jupyter_home
from nbformat import v4

pytest.importorskip("jupyterlab", reason="needs JupyterLab: pip install jupyterlab")
playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium on the path")

MODEL = """%%gen --check (xs,)
def line(xs):
    slope ~ normal(0, 10)
    intercept ~ normal(0, 10)
    for i, x in enumerate(xs):
        y[i] ~ normal(slope * x + intercept, 1)
    return slope"""
CELLS = {
    # Without machine code, of which a run is too short to be watched.
    "data": "import sys; sys.modules['llvmlite'] = None; xs, ys = [1., 2., 3., 4., 5.], [2.1, 3.9, 6.2, 7.8, 10.1]",
    "model": MODEL,
    "trace": "%trace line(xs) | given y=ys -s 1",
    "fit": "%infer ess line(xs) | given y=ys -n 3000 -s 1 -o post",
    "plot": "%plot post",
    "diag": "%diag post",
    "change": "%trace _tr --set slope=2",
    "error": "line(xs).simulate()['slop']",
}
NAMES = list(CELLS)
SECONDS = 180

# What is on the page of the output of a cell.
FACTS = """cell => {
    const children = [...cell.querySelectorAll('.jp-OutputArea-child')].filter(one => !one.querySelector('small'))
    const first = children[0]?.querySelector('.jp-OutputArea-output')
    const count = what => first?.querySelectorAll(what).length ?? 0
    return {
        outputs: children.length, height: first?.getBoundingClientRect().height ?? 0, text: first?.innerText ?? '',
        rows: count('tr'), curves: count('svg polyline'), submaps: count('details'), pictures: count('img'),
        wide: children.some(one => one.scrollWidth > one.clientWidth),
    }
}"""
IDLE = """() => window.jupyterapp?.shell?.currentWidget?.sessionContext?.session?.kernel?.status == 'idle'"""
# The contrast of the text of an element with what is behind it, from 1 to 21 (WCAG 2.2).
CONTRAST = """element => {
    const numbers = colour => colour.match(/[\\d.]+/g).map(Number)
    const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
        .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
        .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0)
    let behind = element
    while (numbers(getComputedStyle(behind).backgroundColor)[3] === 0) behind = behind.parentElement
    const pair = [getComputedStyle(element).color, getComputedStyle(behind).backgroundColor].map(c => light(numbers(c)))
    return (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05)
}"""


@pytest.fixture(scope="module")
def lab(environment, tmp_path_factory):
    """A JupyterLab server that knows the GenMLX kernel: its address, its folder."""
    folder = tmp_path_factory.mktemp("lab")
    home = jupyter_home(folder, environment)
    settings = folder / "config" / "lab" / "user-settings" / "@jupyterlab" / "apputils-extension"
    settings.mkdir(parents=True)
    quiet = {"fetchNews": "false", "checkForUpdates": False}
    (settings / "notification.jupyterlab-settings").write_text(json.dumps(quiet))
    subprocess.run(
        [sys.executable, "-m", "workbench.shell", "--kernel", "--install", "--prefix", str(folder / "prefix")],
        check=True,
        env=home,
        capture_output=True,
    )
    options = ("--no-browser", "--allow-root", "--IdentityProvider.token=of-a-test", "--ServerApp.port=0")
    options += (f"--ServerApp.root_dir={folder}", "--LabApp.expose_app_in_browser=True")
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *options], env=home, stdout=log, stderr=log, start_new_session=True
        )
        try:
            end = time.monotonic() + SECONDS
            while not (found := list((folder / "runtime").glob("jpserver-*.json"))):
                assert server.poll() is None and time.monotonic() < end, (folder / "log").read_text()
                time.sleep(0.1)
            yield SimpleNamespace(url=json.loads(found[0].read_text())["url"], folder=folder)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def page(lab, browser):
    """A notebook that has run in the GenMLX kernel: the page, and what was seen of the run while it went on."""
    cells = [v4.new_code_cell(source, metadata={"tags": ["raises-exception"]}) for source in CELLS.values()]
    kernel = {"name": "genmlx", "display_name": "GenMLX", "language": "python"}
    path = lab.folder / "Line.ipynb"
    nbformat.write(v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), path)

    tab = browser.new_page(viewport={"width": 1200, "height": 1010})
    tab.set_default_timeout(1000 * SECONDS)
    tab.goto(f"{lab.url}lab/tree/{path.name}?reset&token=of-a-test")
    tab.wait_for_selector(".jp-Notebook .jp-CodeCell")
    tab.wait_for_function(IDLE)
    command(tab, "application:toggle-left-area")
    command(tab, "notebook:run-all-cells")
    frames = []
    end = time.monotonic() + SECONDS
    while not number(tab, "fit"):
        assert time.monotonic() < end, cell(tab, "fit").inner_text()
        facts = cell(tab, "fit").evaluate(FACTS)
        if facts["curves"] and (not frames or facts != frames[-1]):
            if draws(facts) > 1000 and not any(draws(one) > 1000 for one in frames):
                take_picture(tab)
            frames.append(facts)
        time.sleep(0.1)
    tab.wait_for_function(IDLE)
    yield SimpleNamespace(tab=tab, frames=frames, path=path)
    tab.close()


def command(tab, name, **arguments):
    tab.evaluate(f"void window.jupyterapp.commands.execute({name!r}, {json.dumps(arguments)})")


def cell(tab, name):
    return tab.locator(".jp-CodeCell").nth(NAMES.index(name))


def number(tab, name):
    """The number in front of a cell; none of one that waits or runs."""
    return cell(tab, name).locator(".jp-InputPrompt").inner_text().strip("[]: *")


def draws(facts):
    """How far the sampling is."""
    found = re.search(r"sampling (\d+)/3000", facts["text"])
    return int(found[1]) if found else 0


def take_picture(tab):
    if "GENMLX_PICTURES" in os.environ:
        cell(tab, "data").scroll_into_view_if_needed()
        tab.screenshot(path=str(Path(os.environ["GENMLX_PICTURES"], "jupyterlab.png")))


def test_a_run_is_one_output_of_one_height_that_moves(page):
    frames = page.frames
    assert len({one["text"] for one in frames}) >= 3
    assert {one["outputs"] for one in frames} == {1}
    assert len({one["height"] for one in frames}) == 1
    assert {one["rows"] for one in frames} == {1 + 4 + 2} and {one["curves"] for one in frames} == {4 * 2}
    done = list(filter(None, map(draws, frames)))
    assert done == sorted(done) and done[-1] > done[0]


def test_the_summary_takes_the_place_of_the_run_on_the_page_and_in_the_file(page):
    facts = cell(page.tab, "fit").evaluate(FACTS)
    assert (facts["outputs"], facts["rows"], facts["curves"]) == (1, 3, 0)
    assert facts["text"].startswith("post: Posterior ess 4x3000 line v1")
    command(page.tab, "docmanager:save")
    end = time.monotonic() + SECONDS
    while not (outputs := nbformat.read(page.path, 4).cells[NAMES.index("fit")].outputs):
        assert time.monotonic() < end
        time.sleep(0.1)
    summary, memory = outputs
    assert "polyline" not in summary.data["text/html"] and memory.metadata == {"genmlx": "mem"}


def test_a_tree_opens_and_closes(page):
    trace = cell(page.tab, "trace")
    assert trace.evaluate(FACTS)["submaps"] == 1
    last = trace.get_by_title("y[4]", exact=True)
    assert last.is_visible()
    trace.locator("summary").click()
    assert not last.is_visible()
    trace.locator("summary").click()
    assert last.is_visible()


def test_figures_tables_and_errors(page):
    facts = {name: cell(page.tab, name).evaluate(FACTS) for name in NAMES}
    assert facts["plot"]["pictures"] == 1 and facts["plot"]["outputs"] == 1
    assert facts["diag"]["rows"] == 3 and facts["change"]["text"].startswith("update line v1")
    assert facts["model"]["text"].startswith("line v1") and "6 laws ok" in facts["model"]["text"]
    first, _, last = facts["error"]["text"].strip().splitlines()
    assert first == f"UnknownAddress: no choice at 'slop' (Cell In[{len(NAMES)}], line 1)"
    assert last == "did you mean 'slope'?"
    assert not [name for name in NAMES if facts[name]["wide"]]


@pytest.mark.parametrize("theme", ["JupyterLab Dark", "JupyterLab Light"])
def test_text_is_readable_in_both_themes(page, theme):
    command(page.tab, "apputils:change-theme", theme=theme)
    page.tab.wait_for_function(f"document.body.dataset.jpThemeName == {theme!r}")
    page.tab.wait_for_function(f"document.body.dataset.jpThemeLight == '{str('Light' in theme).lower()}'")
    time.sleep(1)  # the style sheet follows
    places = {
        "trace": [".genmlx-tree b", ".genmlx-tree .d"],
        "fit": ["b", "td", "p"],
        "change": ["b", "td"],
        "diag": ["td", "th"],
    }
    for name, selectors in places.items():
        for selector in selectors:
            found = cell(page.tab, name).locator(".jp-OutputArea-output").locator(selector).first
            assert found.evaluate(CONTRAST) >= 4.5, (name, selector)
