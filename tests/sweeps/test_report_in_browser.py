"""The report in headless Chromium: no error, every figure drawn, hover, legend, axes, sorting.

Skips where selenium, chromium or its driver is not installed.
"""

import shutil

import pytest

from gptjax.sweeps.ledger import State
from gptjax.sweeps.report import write_report
from tests.sweeps.synthetic import fake, isoflop_sweep

webdriver = pytest.importorskip("selenium.webdriver")
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
DRIVER = shutil.which("chromedriver")
FIGURES = ("loss_flops", "isoflop", "contour", "residuals", "extrapolation")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1200,900",
)

pytestmark = pytest.mark.skipif(not (BROWSER and DRIVER), reason="no chromium with its driver")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    sweep = isoflop_sweep(holdout=4.0, laws=("chinchilla", "kaplan_c"), bootstrap=20)
    states = {3: State("diverged", {}, "the loss is not finite at step 57")}
    folder = fake(tmp_path_factory.mktemp("sweep") / "runs", sweep, states=states)
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def browser(folder, tmp_path_factory):
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    try:
        driver.set_script_timeout(60)
        driver.get((folder.path / "report.html").absolute().as_uri())
        yield driver
    finally:
        driver.quit()


def wait_for(browser, script: str, *arguments):
    """The first true value of a script, within ten seconds."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 10).until(lambda b: b.execute_script(script, *arguments))


def test_every_figure_is_drawn(browser):
    for name in FIGURES:
        marks = wait_for(
            browser,
            "const p = document.getElementById('plot-' + arguments[0]);"
            "return p.querySelectorAll('svg .scatterlayer .trace path').length;",
            name,
        )
        assert marks > 5, name
    contours = "return document.querySelectorAll('#plot-contour .contourlayer path').length"
    assert wait_for(browser, contours) > 5


def test_hover_names_the_run(browser, folder):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By

    plot = browser.find_element(By.ID, "plot-contour")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
    points = plot.find_elements(By.CSS_SELECTOR, ".scatterlayer .points path.point")
    ActionChains(browser).move_to_element(points[0]).perform()
    text = wait_for(
        browser,
        "const t = document.querySelector('#plot-contour .hoverlayer .hovertext');"
        "return t && t.textContent",
    )
    assert any(name in text for name in folder.points) and "loss" in text


def test_a_click_in_the_legend_hides_a_trace(browser):
    from selenium.webdriver.common.by import By

    plot = browser.find_element(By.ID, "plot-isoflop")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
    count = "return document.querySelectorAll('#plot-isoflop .scatterlayer .trace').length"
    before = wait_for(browser, count)
    plot.find_element(By.CSS_SELECTOR, ".legend .legendtoggle").click()
    # the parabola and its runs go together
    assert wait_for(browser, f"{count} === {before} - 2")
    plot.find_element(By.CSS_SELECTOR, ".legend .legendtoggle").click()
    assert wait_for(browser, f"{count} === {before}")


def test_axes_switch_between_log_and_linear(browser):
    from selenium.webdriver.common.by import By

    figure = browser.find_element(By.ID, "figure-loss_flops")
    browser.execute_script("arguments[0].scrollIntoView()", figure)
    kind = "return document.getElementById('plot-loss_flops')._fullLayout.xaxis.type === "
    button = figure.find_element(By.CSS_SELECTOR, "button[data-axis=xaxis]")
    button.click()
    assert wait_for(browser, kind + "'linear'") and button.text == "x: linear"
    button.click()
    assert wait_for(browser, kind + "'log'") and button.text == "x: log"


def test_a_click_on_a_head_sorts_the_runs(browser):
    column = """
        const table = [...document.querySelectorAll('table.sortable')]
            .find(t => t.tHead.textContent.includes('bits/byte'));
        const at = [...table.tHead.rows[0].cells].findIndex(c => c.textContent === 'loss');
        if (arguments[0]) table.tHead.rows[0].cells[at].click();
        return [...table.tBodies[0].rows].map(row => row.cells[at].dataset.value);"""
    for turn in (1, -1):
        values = browser.execute_script(column, True)
        assert values[-1] == "", "what has no loss stays last"
        numbers = [turn * float(value) for value in values[:-1]]
        assert len(numbers) == 19 and numbers == sorted(numbers)


def test_the_console_is_silent(browser):
    """Last: after everything above was clicked."""
    assert browser.get_log("browser") == []
