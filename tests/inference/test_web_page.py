"""The web demo's page, clicked through in headless Chromium."""

import base64

import pytest
from PIL import Image

from resnext_det.inference.web import Limits
from tests.browser import DESKTOP, PHONE, chromium, open_page, overflow, violations
from tests.inference.web_demo import (
    BOXES,
    CORNER,
    ColourDetector,
    coloured_image,
    encoded,
    serving,
)

GREY = (128, 128, 128)
IMAGE = {"name": "areas.png", "mimeType": "image/png", "buffer": encoded(coloured_image())}
TEXT = {"name": "notes.txt", "mimeType": "text/plain", "buffer": b"no image at all"}
PASTE = """([name, code]) => {
  const bytes = Uint8Array.from(atob(code), (c) => c.charCodeAt(0));
  const clipboardData = new DataTransfer();
  clipboardData.items.add(new File([bytes], name, {type: "image/png"}));
  document.body.dispatchEvent(new ClipboardEvent("paste", {clipboardData, bubbles: true}));
}"""


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.fixture
def detector():
    return ColourDetector()


@pytest.fixture
def url(detector):
    with serving(detector, Limits(upload_bytes=1_000_000)) as url:
        yield url


def choose(page, file) -> None:
    page.set_input_files("#file", file)
    page.wait_for_selector("main:not([aria-busy])")


def show_from(page, threshold: float) -> None:
    page.locator("#threshold").fill(str(threshold))


def listed(page) -> list[str]:
    """The classes in the table."""
    return page.locator("#rows td:first-child").all_inner_texts()


def pixel(page, x: float, y: float) -> tuple[int, int, int]:
    """RGB of the canvas where the image's pixel is."""
    found = page.evaluate(
        """([x, y, width]) => {
          const canvas = document.getElementById("canvas"), scale = canvas.width / width;
          const at = [Math.round(x * scale), Math.round(y * scale)];
          return Array.from(canvas.getContext("2d").getImageData(...at, 1, 1).data);
        }""",
        [x, y, coloured_image().width],
    )
    return tuple(found[:3])


def close(a, b, most: int = 12) -> bool:
    return max(abs(x - y) for x, y in zip(a, b, strict=True)) <= most


def on_edge(name: str) -> tuple[float, float]:
    """A place on a box's lower edge, where its mask is not."""
    _, _, x1, y1 = BOXES[name]
    return x1 - CORNER / 2, y1


def inside(name: str) -> tuple[float, float]:
    """A place inside a mask."""
    x0, y0, _, y1 = BOXES[name]
    return x0 + 10, (y0 + y1) / 2


def test_the_threshold_hides_boxes_masks_and_rows_at_once(browser, url, detector):
    with open_page(browser, url) as page:
        assert not page.is_visible("#result") and not page.is_visible("#masks-choice")
        choose(page, IMAGE)
        assert listed(page) == ["red", "green"]
        assert page.inner_text("#status").startswith("2 of 3 detections shown, highest score 0.90")
        assert "320 \N{MULTIPLICATION SIGN} 200 pixels" in page.inner_text("#status")
        assert not close(pixel(page, *on_edge("green")), GREY)
        assert close(pixel(page, *on_edge("blue")), GREY)
        assert close(pixel(page, *inside("blue")), (0, 0, 255))
        show_from(page, 0.3)
        assert listed(page) == ["red", "green", "blue"]
        assert not close(pixel(page, *on_edge("blue")), GREY)
        assert not close(pixel(page, *inside("blue")), (0, 0, 255))
        show_from(page, 0.95)
        assert listed(page) == []
        assert page.inner_text("#status").startswith("0 of 3 detections shown, highest score 0.90")
        assert all(close(pixel(page, *on_edge(name)), GREY) for name in BOXES)
        assert close(pixel(page, *inside("red")), (255, 0, 0))
        assert len(detector.images) == 1  # moving it asks the server nothing


def test_the_table_says_what_the_canvas_shows(browser, url):
    with open_page(browser, url) as page:
        choose(page, IMAGE)
        cells = page.locator("#rows tr").first.locator("td").all_inner_texts()
        assert cells == ["red", "0.90", "20, 100, 60 \N{MULTIPLICATION SIGN} 80"]
        assert "2 detections" in page.get_attribute("#canvas", "aria-label")


def test_masks_can_be_taken_away(browser, url):
    with open_page(browser, url) as page:
        choose(page, IMAGE)
        # half see-through, and only where the object is
        assert not close(pixel(page, *inside("red")), (255, 0, 0))
        x, y = on_edge("red")
        assert close(pixel(page, x, y - CORNER / 2), GREY)
        page.uncheck("#masks")
        assert close(pixel(page, *inside("red")), (255, 0, 0))
        assert not close(pixel(page, *on_edge("red")), GREY)


def test_without_masks_there_is_no_choice_of_them(browser):
    with serving(ColourDetector(masks=False)) as url, open_page(browser, url) as page:
        choose(page, IMAGE)
        assert listed(page) == ["red", "green"]
        assert not page.is_visible("#masks-choice")


def drag(page, *files) -> None:
    """Drag files from outside of the browser onto the page and let them go."""
    carried = {"items": [], "files": [str(f) for f in files], "dragOperationsMask": 1}
    devtools = page.context.new_cdp_session(page)
    for event in ("dragEnter", "dragOver", "drop"):
        where = {"type": event, "x": 200, "y": 500, "data": carried}
        devtools.send("Input.dispatchDragEvent", where)


def test_an_image_is_dropped(browser, url, tmp_path):
    file = tmp_path / "areas.png"
    file.write_bytes(IMAGE["buffer"])
    with open_page(browser, url) as page:
        page.evaluate("addEventListener('drop', (e) => { window.stays = e.defaultPrevented; })")
        drag(page, file)
        page.wait_for_selector("#rows tr")
        assert listed(page) == ["red", "green"]
        assert page.evaluate("window.stays")  # else a window leaves for the image
        drag(page, file, file)
        assert "One image at a time" in page.inner_text("#error")
        assert listed(page) == ["red", "green"]


def test_an_image_is_pasted(browser, url):
    with open_page(browser, url) as page:
        page.evaluate(PASTE, [IMAGE["name"], base64.b64encode(IMAGE["buffer"]).decode()])
        page.wait_for_selector("#rows tr")
        assert listed(page) == ["red", "green"]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_boxes_fall_on_the_objects_of_images_that_are_stored_turned(
    browser, url, kind, orientation
):
    file = encoded(coloured_image(), kind, orientation, **{"quality": 95})
    with open_page(browser, url) as page:
        choose(page, {**IMAGE, "buffer": file})
        page.uncheck("#masks")
        assert close(pixel(page, *inside("red")), (255, 0, 0), 30)
        assert close(pixel(page, *inside("green")), (0, 255, 0), 30)
        assert not close(pixel(page, *on_edge("red")), GREY, 30)


def test_errors_are_said_in_the_page_and_the_next_image_clears_them(browser, url):
    with open_page(browser, url) as page:
        assert not page.is_visible("#error")
        choose(page, IMAGE)
        choose(page, TEXT)
        assert "no image" in page.inner_text("#error")
        assert not page.is_visible("#result")  # nothing of the image before
        assert page.inner_text("#status") == "Nothing to show for notes.txt."
        choose(page, IMAGE)
        assert not page.is_visible("#error") and listed(page) == ["red", "green"]


def test_a_file_over_the_limit_is_not_sent(browser, url, detector):
    with open_page(browser, url) as page:
        choose(page, {**IMAGE, "buffer": bytes(3 * 2**20)})
        assert "3.0 MB; at most 1.0 MB" in page.inner_text("#error")
    assert not detector.images


def test_nothing_found_is_said(browser, url):
    with open_page(browser, url) as page:
        choose(page, {**IMAGE, "buffer": encoded(Image.new("RGB", (50, 40), GREY))})
        assert page.inner_text("#status").startswith(
            "Nothing was found. 50 \N{MULTIPLICATION SIGN} 40 pixels"
        )
        assert page.is_visible("#canvas")


def test_a_server_that_is_gone_is_said(browser, detector):
    with serving(detector) as url:
        profile = browser.new_context()
        page = profile.new_page()
        page.goto(url)
    choose(page, IMAGE)
    assert "server does not answer" in page.inner_text("#error")
    profile.close()


def test_the_last_image_chosen_wins(browser, url, detector):
    detector.gate.clear()
    with open_page(browser, url) as page:
        page.set_input_files("#file", IMAGE)
        page.wait_for_selector("main[aria-busy]")
        empty = encoded(Image.new("RGB", (50, 40), GREY))
        page.set_input_files("#file", {**IMAGE, "name": "empty.png", "buffer": empty})
        detector.gate.set()
        page.wait_for_selector("main:not([aria-busy])")
        assert "50 \N{MULTIPLICATION SIGN} 40" in page.inner_text("#status")
        assert not page.is_visible("#error")


def test_labels_stay_in_the_image_and_do_not_cover_each_other(browser, url):
    box = [30, 2, 140, 90]
    near = [[x + dx, y + dx, z + dx, w + dx] for dx in range(0, 60, 5) for x, y, z, w in [box]]
    labels = [{"box": b, "width": 80, "height": 18} for b in near]
    with open_page(browser, url) as page:
        places = page.evaluate("(labels) => placeLabels(labels, 200, 160)", labels)
    kept = [p for p in places if p]
    assert places[0] == [29, 0] and len(kept) >= 5
    for index, (x, y) in enumerate(kept):
        assert 0 <= x <= 200 - 80 and 0 <= y <= 160 - 18
        assert all(abs(x - u) >= 80 or abs(y - v) >= 18 for u, v in kept[:index])


def test_names_are_shown_as_text(browser):
    name = "<img src=x onerror=document.title='owned'>"
    detector = ColourDetector((name, "green", "blue"))
    with serving(detector) as url, open_page(browser, url) as page:
        choose(page, IMAGE)
        choose(page, {**TEXT, "name": f"{name}.txt"})
        assert name in page.inner_text("#status")
        choose(page, IMAGE)
        assert listed(page) == [name, "green"]
        assert "owned" not in page.title()


def test_all_can_be_done_from_the_keyboard(browser, url):
    with open_page(browser, url) as page:
        choose(page, IMAGE)
        reached = []
        for _ in range(4):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.id || 'table'"))
        assert reached == ["file", "threshold", "masks", "table"]
        page.focus("#masks")
        page.keyboard.press("Space")
        assert not page.is_checked("#masks")
        page.keyboard.press("Shift+Tab")
        for _ in range(20):
            page.keyboard.press("ArrowLeft")
        assert page.inner_text("#threshold-value") == "0.30"
        assert listed(page) == ["red", "green", "blue"]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("viewport", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_the_page_is_accessible_and_fits(browser, scheme, viewport):
    long = "a class with a very long name of " + "many" * 20 + " letters"
    with (
        serving(ColourDetector((long, "green", "blue"))) as url,
        open_page(browser, url, viewport=viewport, color_scheme=scheme) as page,
    ):
        assert violations(page) == [] and overflow(page) <= 0
        choose(page, IMAGE)
        assert violations(page) == [] and overflow(page) <= 0
        choose(page, TEXT)
        assert violations(page) == [] and overflow(page) <= 0
