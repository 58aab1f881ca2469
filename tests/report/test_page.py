"""The report in a real browser: drawn, readable, self-contained, and safe to open."""

import dataclasses
import json
import shutil
from contextlib import closing
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import sync_playwright
from report_runs import (
    config,
    confirmation,
    evaluation,
    path_points,
    remedies,
    write_run,
)

from tune_softmax.errors import StorageError
from tune_softmax.report.inputs import Inputs, gather
from tune_softmax.report.page import compose, save
from tune_softmax.report.serve import Live, serving
from tune_softmax.report.theme import DARK, LIGHT
from tune_softmax.run.folder import RunFolder
from tune_softmax.run.ledger import Ledger

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = [
    *("--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
]
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
HOSTILE = (
    "</script><img src=x onerror=\"window.hacked = 'yes'\"><script>window.hacked = 1</script>"
)


@pytest.fixture(scope="module")
def browser():
    """Return a headless Chromium, or skip the test."""
    program = next(filter(None, map(shutil.which, BROWSERS)), None)
    if program is None:
        pytest.skip("no Chromium is installed; on Debian: apt-get install chromium")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=OPTIONS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """Return everything that a report can be made from."""
    run = write_run(tmp_path_factory.mktemp("runs") / "run")
    (run / "best").mkdir()
    (run / "best" / "evaluation.json").write_text(json.dumps(evaluation()))
    return dataclasses.replace(
        gather(run), path=path_points(), remedies=remedies(), confirmation=confirmation()
    )


@pytest.fixture(scope="module")
def report(inputs, tmp_path_factory):
    """Return the path of a page with every section."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    save(compose(inputs).html(), path)
    return path


def opened(browser, address, **options):
    """Open an address and wait until all is drawn; return the page and what it did meanwhile."""
    page = browser.new_context(**options).new_page()
    did = SimpleNamespace(errors=[], requests=[], page=page)
    page.on("console", lambda message: did.errors.append(message.text))
    page.on("pageerror", lambda error: did.errors.append(str(error)))
    page.on("request", lambda request: did.requests.append(request.url))
    page.goto(address)
    page.wait_for_selector("html[data-drawn]", timeout=120_000)
    return did


@pytest.fixture(scope="module")
def desktop(browser, report):
    """Return the page on a wide screen in light colours, and what it did."""
    return opened(browser, report.as_uri(), viewport=DESKTOP, color_scheme="light")


@pytest.fixture(scope="module")
def phone(browser, report):
    """Return the page on a phone in dark colours, and what it did."""
    options = {"viewport": PHONE, "has_touch": True, "is_mobile": True}
    return opened(browser, report.as_uri(), color_scheme="dark", **options)


def rows_of(page):
    """Return the cells of the trials that are shown."""
    script = "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    return page.eval_on_selector_all("#trial-table tbody tr", script)


# --- What is drawn ------------------------------------------------------------------------------


def test_every_figure_is_drawn(desktop):
    """Each holds marks, not only axes."""
    script = """plots => plots.map(plot => ({
        name: plot.closest("figure").querySelector("h3").textContent,
        marks: plot.querySelectorAll(
            ".point, .js-line, .hm image, .contourlayer path, .errorbar").length,
        width: plot.querySelector(".main-svg").getBoundingClientRect().width,
    }))"""
    plots = desktop.page.eval_on_selector_all("[data-figure]", script)
    assert len(plots) >= 25
    assert [plot["name"] for plot in plots if not plot["marks"]] == []
    assert min(plot["width"] for plot in plots) > 300


def test_every_section_is_there(desktop):
    """In the order of reading, from the summary to how to reproduce it."""
    headings = desktop.page.eval_on_selector_all("h2", "all => all.map(h => h.textContent)")
    assert headings == [
        "Summary",
        "Best configuration",
        "Learning curves",
        "Generalization gap",
        "Regularization path",
        "Remedies",
        "Early stopping",
        "Progress",
        "Hyperparameters",
        "Confusion matrix",
        "All trials",
        "Reproduce",
    ]
    assert desktop.page.locator(".findings li").count() == 5
    links = desktop.page.eval_on_selector_all(
        "nav a", "all => all.map(a => document.querySelector(a.hash)?.textContent)"
    )
    assert links == headings


def test_the_page_needs_nothing_but_itself(desktop, phone, report):
    """No request leaves it, and the console stays silent."""
    for did in (desktop, phone):
        assert did.requests == [report.as_uri()]
        assert did.errors == []


def test_the_page_is_light(report):
    """Under 6 MB, Plotly's code among them."""
    assert report.stat().st_size < 3_000_000


def test_the_run_can_be_done_again(desktop):
    """Command, seed, versions, checksum, hardware, and each look at the test set."""
    text = desktop.page.locator("section[aria-labelledby=reproduction]").inner_text()
    assert "tune-softmax search 'experiments/my file.yaml'" in text
    for part in (
        "0123456789abcdef",
        "a processor",
        "3.11.7",
        "2.15.0",
        "opened once",
        "train, trial 7",
    ):
        assert part in text


def test_a_wrong_image_is_shown(desktop):
    """With its classes in words, decoded by the browser."""
    image = desktop.page.locator(".images img")
    assert image.get_attribute("alt") == "Test image of class 6, predicted class 0"
    assert image.evaluate("image => image.naturalWidth") == 2


# --- The table of trials ------------------------------------------------------------------------


def test_the_table_sorts(desktop):
    """Up and down by numbers, not by their digits; what is missing comes last."""
    page = desktop.page
    header = page.locator("#trial-table thead th", has_text="num epochs")
    index = header.evaluate("cell => cell.cellIndex")
    for order, reverse in (("ascending", False), ("descending", True)):
        header.locator("button").click()
        assert header.get_attribute("aria-sort") == order
        numbers = [int(row[index]) for row in rows_of(page)]
        assert numbers == sorted(numbers, reverse=reverse)
        assert numbers[0] == (8 if reverse else 1)
    error = page.locator("#trial-table thead th button", has_text="error")
    error.click()
    assert [row[-1] for row in rows_of(page)][:5] == ["diverged: NaN"] * 4 + [""]
    error.click()
    assert [row[-1] for row in rows_of(page)][:5] == ["diverged: NaN"] * 4 + [""]
    page.locator("#trial-table thead th button", has_text="number").click()


def test_the_table_filters_and_turns_pages(desktop, inputs):
    """Every word must be in the row; the count says how many there are."""
    page = desktop.page
    assert page.locator("#shown").inner_text() == "1 to 25 of 40 trials"
    assert page.locator("#previous").is_disabled()
    page.locator("#next").click()
    assert [int(row[0]) for row in rows_of(page)] == list(range(25, 40))
    assert page.locator("#next").is_disabled()
    page.locator("#search").fill("PRUNED linear")
    trials = inputs.search.trials
    expected = trials[
        (trials["state"] == "PRUNED") & (trials["learning_rate_schedule"] == "linear")
    ]
    assert [int(row[0]) for row in rows_of(page)] == expected["number"].tolist()
    page.locator("#search").fill("no such trial")
    assert page.locator("#shown").inner_text() == "none of 0 trials"
    page.locator("#search").fill("")


def test_the_table_says_what_the_trials_say(desktop, inputs):
    """Every column, numbers to five digits."""
    header = desktop.page.eval_on_selector_all(
        "#trial-table thead th", "all => all.map(cell => cell.textContent)"
    )
    trials = inputs.search.trials
    assert header == [name.replace("_", " ") for name in trials.columns]
    row = dict(zip(trials.columns, rows_of(desktop.page)[4], strict=True))
    assert row["state"] == trials["state"][4]
    for name in ("learning_rate", "weight_decay", "last_validation_loss"):
        assert float(row[name]) == pytest.approx(trials[name][4], rel=2e-4)


# --- On every screen ----------------------------------------------------------------------------


@pytest.mark.parametrize("width", [390, 320])
def test_a_phone_does_not_scroll_sideways(phone, width):
    """The page fits; what is wider scrolls inside its own box."""
    phone.page.set_viewport_size({"width": width, "height": 844})
    sizes = phone.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert sizes == [width, width]
    wider = phone.page.eval_on_selector_all(
        "#trial-table .scroll", "all => all.map(box => box.scrollWidth > box.clientWidth)"
    )
    assert wider == [True]


def test_figures_fit_the_phone(phone):
    """None is cut off, but those that scroll in their box."""
    phone.page.set_viewport_size(PHONE)
    phone.page.wait_for_timeout(300)  # Plotly fits its figures a moment after the window
    script = """plots => plots.filter(plot => !plot.closest(".scroll"))
        .map(plot => plot.querySelector(".main-svg").getBoundingClientRect().right)"""
    rights = phone.page.eval_on_selector_all("[data-figure]", script)
    assert max(rights) <= 390


def colors_of(page):
    """Return the colours of the page's background and text, and of a figure's text."""
    return page.evaluate("""() => [
        getComputedStyle(document.body).backgroundColor,
        getComputedStyle(document.body).color,
        getComputedStyle(document.querySelector(".legendtext")).fill,
    ]""")


def expected_colors(palette):
    """Return the same as a palette has them."""
    parts = [
        [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        for color in (palette.background, palette.ink, palette.ink)
    ]
    return [f"rgb({red}, {green}, {blue})" for red, green, blue in parts]


def test_the_screen_chooses_light_or_dark(desktop, phone):
    """Page and figures alike."""
    assert colors_of(desktop.page) == expected_colors(LIGHT)
    assert colors_of(phone.page) == expected_colors(DARK)


@pytest.mark.slow
def test_the_reader_may_choose_otherwise(desktop):
    """The choice stays when the page is opened again."""
    page = desktop.page
    page.locator("#theme").click()
    assert colors_of(page) == expected_colors(DARK)
    page.reload()
    page.wait_for_selector("html[data-drawn]", timeout=120_000)
    assert colors_of(page) == expected_colors(DARK)
    page.locator("#theme").click()
    assert colors_of(page) == expected_colors(LIGHT)
    desktop.requests.pop()


@pytest.mark.parametrize("device", [pytest.param("desktop", marks=pytest.mark.slow), "phone"])
def test_axe_finds_nothing(device, request):
    """Contrast, headings, names, roles: axe-core's rules, in light and in dark."""
    page = request.getfixturevalue(device).page
    page.evaluate("document.querySelector('details').open = true")
    found = Axe().run(page)
    assert found.violations_count == 0, found.generate_report()


def test_every_figure_has_words_in_its_place(desktop):
    """Each is an image with a description of its own, that has numbers."""
    texts = desktop.page.eval_on_selector_all(
        "[data-figure]", "all => all.map(plot => [plot.role, plot.ariaLabel])"
    )
    assert {role for role, _ in texts} == {"img"}
    labels = [label for _, label in texts]
    assert len(set(labels)) == len(labels)
    assert all(len(label) > 40 for label in labels)


def test_headings_skip_no_level(desktop):
    """One h1, then each at most one deeper than that before."""
    names = desktop.page.eval_on_selector_all(
        "h1, h2, h3, h4", "all => all.map(heading => Number(heading.tagName[1]))"
    )
    assert names.count(1) == 1
    assert names[0] == 1
    assert max(np.diff(names)) == 1


def test_paper_is_white(phone):
    """Also where the screen is dark, and what can only be pressed is left out."""
    phone.page.emulate_media(media="print")
    assert colors_of(phone.page)[:2] == expected_colors(LIGHT)[:2]
    for name in ("#theme", "nav", ".controls"):
        assert not phone.page.locator(name).is_visible()
    phone.page.emulate_media(media="screen")


@pytest.mark.slow
def test_it_prints(desktop):
    """In light colours though the reader chose dark, and no wider than the paper."""
    page = desktop.page
    page.locator("#theme").click()
    page.emulate_media(media="print")
    assert colors_of(page)[0] == expected_colors(LIGHT)[0]
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.set_viewport_size({"width": 718, "height": 1000})  # A4, less its margins
    assert page.evaluate("document.documentElement.scrollWidth") == 718
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    page.set_viewport_size(DESKTOP)
    document = page.pdf(format="A4")
    assert document.startswith(b"%PDF")
    assert document.count(b"/Type /Page\n") + document.count(b"/Type /Page ") > 5
    page.emulate_media(media="screen")
    page.locator("#theme").click()


# --- What a stranger may have written -----------------------------------------------------------


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Return the path of a page of a run whose every text tries to be markup."""
    run = write_run(tmp_path_factory.mktemp("hostile") / "<b>run", 4, error=HOSTILE)
    content = evaluation()
    content["class_names"] = [f"{HOSTILE}{number}" for number in range(10)]
    (run / "best").mkdir()
    (run / "best" / "evaluation.json").write_text(json.dumps(content))
    (run / "environment.json").write_text(
        json.dumps({HOSTILE: HOSTILE, "command": ["x", HOSTILE], "packages": {HOSTILE: HOSTILE}})
    )
    studied = remedies()
    effects = studied.effects.assign(remedy=HOSTILE, strength_label=HOSTILE)
    arms = studied.arms.assign(remedy=HOSTILE)
    inputs = dataclasses.replace(
        gather(run),
        remedies=dataclasses.replace(studied, effects=effects, arms=arms),
        openings=((HOSTILE, HOSTILE),),
    )
    path = run / "report.html"
    save(compose(inputs).html(), path)
    return path


@pytest.fixture(scope="module")
def stranger(browser, hostile):
    """Return that page, opened, and what it did."""
    return opened(browser, hostile.as_uri(), viewport=DESKTOP)


def test_nothing_of_a_run_becomes_markup(stranger, hostile):
    """It stands on the page as the text it is, and no script of it runs."""
    page = stranger.page
    assert page.evaluate("window.hacked") is None
    assert stranger.errors == []
    assert stranger.requests == [hostile.as_uri()]
    assert page.locator("img:not([src^='data:'])").count() == 0
    assert page.locator("body script").count() == 3
    assert HOSTILE in page.locator("section[aria-labelledby=reproduction]").inner_text()
    assert HOSTILE in page.locator("section[aria-labelledby=remedies]").inner_text()
    page.locator("#search").fill("fail")
    assert rows_of(page)[0][-1] == HOSTILE[:200]


def test_other_scripts_and_connections_are_forbidden(stranger):
    """Even if a text became markup, it could neither run nor carry anything away."""
    page = stranger.page
    page.evaluate("""() => {
        const script = document.createElement("script");
        script.textContent = "window.hacked = 1";
        document.body.append(script);
        document.body.insertAdjacentHTML("beforeend", "<img src=x onerror='window.hacked = 2'>");
    }""")
    refused = page.evaluate("fetch('https://example.org/').then(() => 'sent', () => 'refused')")
    assert refused == "refused"
    page.wait_for_timeout(200)
    assert page.evaluate("window.hacked") is None


# --- Less than everything, and more -------------------------------------------------------------


@pytest.mark.parametrize("count", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 3))])
def test_a_search_that_has_just_begun_is_drawn(browser, tmp_path, count):
    """With what there is; the rest says how to get it."""
    run = write_run(tmp_path / "run", count)
    path = tmp_path / "report.html"
    save(compose(gather(run)).html(), path)
    did = opened(browser, path.as_uri(), viewport=DESKTOP)
    assert did.errors == []
    text = did.page.locator("main").inner_text()
    assert f"tune-softmax resume {run}" in text
    assert f"tune-softmax oracle {run}/experiment.yaml" in text
    assert f"tune-softmax confirm {run}" in text or count == 0
    did.page.context.close()


@pytest.mark.slow
def test_a_study_of_remedies_alone_is_drawn(browser, inputs, tmp_path):
    """Without any search."""
    alone = Inputs(inputs.folder, inputs.experiment, remedies=inputs.remedies)
    path = tmp_path / "report.html"
    save(compose(alone).html(), path)
    did = opened(browser, path.as_uri(), viewport=PHONE)
    assert did.errors == []
    assert did.page.locator(".findings li").count() == 5
    assert did.page.locator("[data-figure] .main-svg").count() > 0
    assert did.page.locator("#trial-table").count() == 0
    did.page.context.close()


@pytest.mark.slow
def test_a_page_follows_its_run(browser, tmp_path):
    """When the run has changed the page loads itself again, and says what is new."""
    run = write_run(tmp_path / "run", 3)
    live = Live(lambda version: compose(gather(run)).html(version), run)
    with serving(live, 0) as address:
        did = opened(browser, address, viewport=DESKTOP)
        assert "3 of 40 trials done" in did.page.locator(".subtitle").inner_text()
        with closing(Ledger.open(RunFolder(run).ledger, writable=True)) as ledger:
            ledger.hand_out(1, {3: config(3)})
            ledger.finish([3], "FAIL", "lost")
        assert live.refresh()
        did.page.wait_for_selector("html[data-version='2'][data-drawn]", timeout=60_000)
        assert "4 of 40 trials done" in did.page.locator(".subtitle").inner_text()
        assert did.errors == []
        assert {url.removeprefix(address) for url in did.requests} == {"", "version"}
        did.page.context.close()


def test_a_page_goes_over_the_one_before(tmp_path):
    """In one move, and a place that cannot be written is an error."""
    path = tmp_path / "report.html"
    save("before", path)
    save("after", path)
    assert path.read_text() == "after"
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(StorageError, match="name another place by --output"):
        save("page", tmp_path / "missing" / "report.html")


@pytest.mark.slow
def test_ten_thousand_trials_fit(browser, inputs, tmp_path):
    """Under 6 MB, and the table still answers."""
    search = inputs.search
    many = pd.concat([search.trials] * 250, ignore_index=True)
    many["number"] = range(len(many))
    rng = np.random.default_rng(0)
    for name in ("learning_rate", "weight_decay", "last_validation_loss", "last_train_loss"):
        many[name] *= rng.uniform(0.9, 1, len(many)) if "rate" not in name else 1
    many["weight_decay"] = many["weight_decay"].clip(1e-6, 0.1)
    large = dataclasses.replace(search, trials=many)
    path = tmp_path / "report.html"
    save(compose(dataclasses.replace(inputs, search=large)).html(), path)
    assert path.stat().st_size < 6_000_000
    did = opened(browser, path.as_uri(), viewport=DESKTOP)
    did.page.locator("#search").fill("pruned linear")
    count = ((many["state"] == "PRUNED") & (many["learning_rate_schedule"] == "linear")).sum()
    assert f"of {count:,} trials" in did.page.locator("#shown").inner_text()
    did.page.context.close()
