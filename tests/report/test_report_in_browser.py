import pytest

from resnext_det.report import write_comparison, write_report
from tests.browser import DESKTOP, PHONE, chromium, open_page, overflow, violations
from tests.report.runs import evaluation, write_data, write_run

LONG = "a_class_with_a_name_that_is_very_long_and_has_no_blank_to_break_at_" * 2


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Addresses of a page with few classes, one with many, and a comparison."""
    root = tmp_path_factory.mktemp("pages")
    written = {}
    for name, classes in (
        ("few", ["circle", LONG, "star", "never"]),
        ("many", [f"class {i}" for i in range(80)]),
    ):
        sets = ("custom_val", "custom_val_2") if name == "few" else ("custom_val",)
        data = {s: write_data(root / f"{name}-{s}", classes) for s in sets}
        content = evaluation(classes, tasks=("bbox", "segm", "keypoints"))
        content["tasks"]["bbox"]["classes"][3].update(AP=None, AP50=None)
        content["tasks"]["bbox"]["findings"] = [
            {"code": "x", "message": f"{LONG} was never found", "remedy": "train longer"}
        ]
        run = write_run(root / name, data, dict.fromkeys(sets, content))
        written[name] = write_report(run).as_uri()
    comparison = write_comparison([root / "few", root / "many"], root / "comparison.html")
    return {**written, "comparison": comparison.as_uri()}


@pytest.mark.parametrize("name", ["few", "many", "comparison"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_it_is_accessible_and_no_wider_than_the_window(browser, pages, name, scheme, viewport):
    with open_page(browser, pages[name], color_scheme=scheme, viewport=viewport) as page:
        page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        assert overflow(page) <= 0
        assert violations(page) == []


def column(page, number):
    return page.eval_on_selector_all(
        "#d1-bbox-classes tbody tr",
        "(rows, n) => rows.map((row) => row.cells[n].dataset.value ?? row.cells[n].textContent)",
        number,
    )


def test_a_click_sorts_a_column_with_undefined_values_last(browser, pages):
    with open_page(browser, pages["few"]) as page:
        before = column(page, 2)
        known = sorted((v for v in before if v), key=float)
        assert before[3] == "" and before[:3] != known[::-1]
        button = page.locator("#d1-bbox-classes th button").nth(2)
        head = page.locator("#d1-bbox-classes thead th").nth(2)
        button.click()
        assert column(page, 2) == [*known[::-1], ""]
        assert head.get_attribute("aria-sort") == "descending"
        button.focus()
        page.keyboard.press("Enter")
        assert column(page, 2) == [*known, ""]
        assert head.get_attribute("aria-sort") == "ascending"
        page.locator("#d1-bbox-classes th button").nth(0).click()
        assert column(page, 0) == sorted(column(page, 0))
        assert head.get_attribute("aria-sort") is None


def test_without_scripts_it_is_a_plain_page(browser, pages):
    with open_page(browser, pages["few"], java_script_enabled=False) as page:
        assert page.locator("#d1-bbox-classes tbody tr").count() == 4
        assert page.locator("button").count() == 0


def test_every_picture_has_a_text(browser, pages):
    with open_page(browser, pages["few"]) as page:
        images = page.locator("img")
        assert images.count() == 2 * 2 * 4
        assert all(images.nth(i).get_attribute("alt") for i in range(images.count()))
        assert page.evaluate("[...document.images].every((image) => image.naturalWidth > 100)")


def test_paper_shows_what_is_folded_on_the_screen(browser, pages):
    with open_page(browser, pages["many"]) as page:
        config = page.locator("pre")
        assert not config.is_visible()
        page.emulate_media(media="print")
        assert config.is_visible()
        assert page.evaluate("[...document.querySelectorAll('details')].every((d) => d.open)")
        page.emulate_media(media="screen")
        config.wait_for(state="hidden")


def test_lines_and_text_of_charts_are_seen_in_the_dark(browser, pages):
    colours = {}
    for scheme in ("light", "dark"):
        with open_page(browser, pages["few"], color_scheme=scheme) as page:
            colours[scheme] = page.evaluate(
                "[...document.querySelectorAll('svg.chart text, svg.chart path')].map((e) => "
                "getComputedStyle(e)[e.tagName === 'text' ? 'fill' : 'stroke'])"
            )
    assert "rgb(230, 233, 237)" in colours["dark"] and "rgb(28, 33, 40)" in colours["light"]
    drawn = {s: {c for c in found if c != "none"} for s, found in colours.items()}
    assert not drawn["light"] & drawn["dark"]


def test_paper_has_a_margin(browser, pages):
    with open_page(browser, pages["few"]) as page:
        margins = page.evaluate(
            "[...document.styleSheets[0].cssRules].filter((r) => r instanceof CSSPageRule)"
            ".map((r) => r.style.margin)"
        )
    assert margins == ["12mm"]
