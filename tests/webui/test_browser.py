"""The page in headless Chromium: what a person does with it, judged by the pictures that come of it."""

import io
import json
import re
import time

import numpy as np
import pytest
from PIL import Image

from ppsd3.cli.png import read_settings, save_png
from ppsd3.shapes import read_picture

pytestmark = pytest.mark.browser

FEW = "8"  # steps that draw a circle which the judge knows


def field(tab, task, name):
    return tab.locator(f"#{task}-{name}").locator("input, textarea").first


def ask(tab, task="generate", **values):
    """Fills fields of the form and draws; returns the picture that comes."""
    for name, value in values.items():
        field(tab, task, name).fill(str(value))
    before = shown(tab, task)
    tab.click(f"#{task}-draw")
    return result(tab, task, before)


def shown(tab, task):
    """The address of the picture that is shown, None without one."""
    images = tab.locator(f"#{task}-result img")
    return images.first.get_attribute("src") if images.count() else None


def result(tab, task="generate", before=None):
    """The picture that is shown in place of ``before``."""
    tab.wait_for_function(
        """([task, before]) => document.querySelector(`#${task}-status [role=alert]`)
        || ![null, before].includes((document.querySelector(`#${task}-result img`) || {getAttribute() { return null; }})
            .getAttribute("src"))""",
        arg=[task, before],
    )
    said = tab.inner_text(f"#{task}-status")
    assert "done" in said or "完成" in said, said
    return picture_at(tab, shown(tab, task))


def picture_at(tab, address):
    answer = tab.request.get(tab.evaluate("address => new URL(address, document.baseURI).href", address))
    assert answer.ok, (answer.status, address)
    return Image.open(io.BytesIO(answer.body())).convert("RGB")


def open_tab_of(tab, name):
    """Chooses a tab of the page; on a narrow one it may be in the menu of those that have no room."""
    tab.get_by_role("tab", name=name, exact=True).click()


def only_object(picture):
    objects = read_picture(picture).objects
    assert len(objects) == 1, objects
    return objects[0]


def test_a_prompt_becomes_the_right_picture(new_tab, served):
    tab = new_tab()
    field(tab, "generate", "prompt").fill("a green square")
    tab.click("#generate-draw")
    tab.wait_for_selector("#generate-status progress")
    tab.wait_for_selector("#generate-status .previews img")
    picture = result(tab)
    found = only_object(picture)
    assert (found.color, found.shape) == ("green", "square")
    newest = max(served.output.glob("*.png"), key=lambda path: path.stat().st_mtime_ns)
    assert read_settings(str(newest))["prompt"] == "a green square"


def test_the_seed_is_shown_reused_and_changed(new_tab):
    tab = new_tab()
    first = ask(tab, prompt="a red circle", num_inference_steps=FEW)
    tab.click("#generate-again")
    tab.wait_for_function("document.querySelector('#generate-seed textarea, #generate-seed input').value != ''")
    seed = int(field(tab, "generate", "seed").input_value())
    assert str(seed) in tab.inner_text("#generate-status")
    again = ask(tab)
    assert np.array_equal(first, again)
    other = ask(tab, seed=seed + 1)
    assert not np.array_equal(first, other)


def test_cancel_stops_within_a_step(new_tab):
    tab = new_tab()
    field(tab, "generate", "prompt").fill("a red circle")
    field(tab, "generate", "num_inference_steps").fill("100")
    for side in ("width", "height"):
        field(tab, "generate", side).fill("128")
    tab.click("#generate-draw")
    began = time.monotonic()
    tab.wait_for_function("/step [3-9] /.test(document.querySelector('#generate-status').textContent)")
    step = (time.monotonic() - began) / 3
    tab.click("#generate-cancel")
    clicked = time.monotonic()
    tab.wait_for_selector("#generate-status:has-text('cancelled')")
    assert time.monotonic() - clicked < 3 * step + 2  # one step, and what the browser takes on a busy machine
    for name in ("width", "height"):
        field(tab, "generate", name).fill("")
    assert only_object(ask(tab, num_inference_steps=FEW)).shape == "circle"  # the place is free


def test_a_painted_mask_is_drawn_anew_and_the_rest_stays(new_tab):
    tab = new_tab()
    before = ask(tab, prompt="a small red circle on a white background", seed=3, num_inference_steps=FEW)
    tab.click("#generate-to-inpaint")
    canvas = tab.locator("#editor canvas").first
    canvas.wait_for()
    tab.wait_for_timeout(1500)  # the editor fits the picture into its frame
    box = canvas.bounding_box()
    middle, top = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2 - 60
    tab.mouse.move(middle - 90, top)
    tab.mouse.down()
    for row in range(5):  # to and fro, over the upper half
        tab.mouse.move(middle + (90 if row % 2 == 0 else -90), top + 20 * row, steps=3)
    tab.mouse.up()
    after = ask(tab, "inpaint", prompt="a blue square", seed=5, num_inference_steps=FEW, strength=1)
    change = np.abs(np.asarray(after, float) - np.asarray(before, float)).max(-1)
    side = before.size[0]
    assert change[side // 4 : side // 2, side // 4 : -side // 4].max() > 60
    assert np.median(change[-side // 8 :]) < 20


def test_a_picture_guides_through_a_controlnet(new_tab, tmp_path):
    tab = new_tab()
    open_tab_of(tab, "ControlNet")
    pixels = np.full((64, 64, 3), 240, np.uint8)
    pixels[20:44, 20:44] = (30, 60, 200)
    Image.fromarray(pixels).save(tmp_path / "source.png")
    tab.set_input_files("#source input[type=file]", tmp_path / "source.png")
    tab.wait_for_selector("#control-control_image img")
    tab.click("#preprocessor input")
    tab.get_by_role("option", name="silhouette").click()
    tab.wait_for_timeout(1500)
    seen = picture_at(tab, tab.locator("#control-control_image img").first.get_attribute("src"))
    assert np.asarray(seen)[32, 32].min() > 250 and np.asarray(seen)[4, 4].max() < 5
    picture = ask(tab, "control", prompt="a red square", num_inference_steps=FEW, seed=1)
    found = only_object(picture)
    assert found.color == "red" and abs(found.x - 0.5) < 0.15 and abs(found.y - 0.5) < 0.15


def test_settings_of_a_dropped_png_fill_the_form(new_tab, tmp_path):
    tab = new_tab()
    settings = {
        "prompt": "a yellow triangle", "num_inference_steps": 8, "seed": 11, "guidance_scale": 3.5, "width": 64,
        "scheduler": "heun", "lora": ["/etc/passwd"], "model": "/somebody/elses", "command": "generate",
        "guidance": json.dumps({"kind": "GuidanceRescale", "factor": 0.5}),
    }  # fmt: skip
    save_png(Image.new("RGB", (64, 64)), str(tmp_path / "dropped.png"), settings)
    tab.get_by_text("Settings from a picture").click()
    tab.set_input_files("#dropped input[type=file]", tmp_path / "dropped.png")
    tab.wait_for_selector("#said .status")
    assert "lora, model" in tab.inner_text("#said")
    assert field(tab, "generate", "prompt").input_value() == "a yellow triangle"
    assert field(tab, "generate", "seed").input_value() == "11"
    assert field(tab, "generate", "guidance_scale").input_value() == "3.5"
    picture = ask(tab)
    found = only_object(picture)
    assert (found.color, found.shape) == ("yellow", "triangle")


def test_a_png_with_impossible_settings_is_refused(new_tab, tmp_path):
    tab = new_tab()
    save_png(Image.new("RGB", (64, 64)), str(tmp_path / "bad.png"), {"prompt": "a", "num_inference_steps": 10**9})
    tab.get_by_text("Settings from a picture").click()
    tab.set_input_files("#dropped input[type=file]", tmp_path / "bad.png")
    tab.wait_for_selector("#said [role=alert]")
    assert field(tab, "generate", "prompt").input_value() == ""


def test_an_upload_that_is_no_picture_is_refused(new_tab, tmp_path):
    tab = new_tab("zh")
    open_tab_of(tab, "ControlNet")
    tab.locator("#source").wait_for()
    (tmp_path / "none.png").write_text("hello")
    tab.set_input_files("#source input[type=file]", tmp_path / "none.png")
    tab.get_by_text("这不是图像").first.wait_for()
    assert tab.locator("#source img").count() == 0


def test_the_language_changes_and_the_form_stays(new_tab):
    tab = new_tab()
    ask(tab, prompt="a red circle", num_inference_steps=FEW)
    tab.get_by_role("link", name="中文").click()
    tab.get_by_role("button", name="生成", exact=True).first.wait_for()
    assert tab.evaluate("document.documentElement.lang") == "zh"
    tab.wait_for_function("document.querySelector('#generate-prompt textarea').value == 'a red circle'")
    assert only_object(ask(tab)).shape == "circle"
    words = tab.inner_text("body")
    assert not re.search(r"\b(Draw|Cancel|Steps|Drop Image|Settings from)\b", words), words


def test_the_first_page_is_in_the_language_of_the_browser(new_tab, served):
    tab = new_tab(locale="zh-CN")
    tab.goto(served.address)
    assert tab.url.endswith("/zh/")


def test_a_page_that_is_loaded_again_goes_on(new_tab):
    tab = new_tab()
    field(tab, "generate", "prompt").fill("a red circle")
    field(tab, "generate", "num_inference_steps").fill("60")
    tab.click("#generate-draw")
    tab.wait_for_function("/step [2-9] /.test(document.querySelector('#generate-status').textContent)")
    tab.reload()
    tab.wait_for_selector("#generate-status progress")
    tab.wait_for_function("document.querySelector('#generate-prompt textarea').value == 'a red circle'")
    assert only_object(result(tab)).shape == "circle"


def test_compare_and_grid_draw_side_by_side(new_tab):
    tab = new_tab()
    field(tab, "generate", "prompt").fill("a red circle")
    field(tab, "generate", "num_inference_steps").fill(FEW)
    open_tab_of(tab, "Compare")
    tab.locator("#right-prompt textarea, #right-prompt input").fill("a blue circle")
    tab.click("#compare-draw")
    tab.wait_for_selector("#compare-result figure:nth-child(2) img")
    left, right = (picture_at(tab, image.get_attribute("src")) for image in tab.locator("#compare-result img").all())
    assert (only_object(left).color, only_object(right).color) == ("red", "blue")
    open_tab_of(tab, "X/Y grid")
    tab.click("#grid-draw")
    tab.wait_for_selector("#grid-result figure:nth-child(4) img")
    assert "Steps: 4\nGuidance scale: 1" in tab.inner_text("#grid-result figure:first-child")


def test_the_gallery_shows_what_was_drawn(new_tab):
    tab = new_tab()
    ask(tab, prompt="a purple circle", num_inference_steps=FEW, seed=4)
    open_tab_of(tab, "Gallery")
    tab.locator("#gallery img").first.click()
    tab.wait_for_function("document.querySelector('#gallery-settings textarea').value.includes('a purple circle')")
    tab.click("#gallery-to-img2img")
    tab.wait_for_selector("#img2img-image img")
    only_object(ask(tab, "img2img", prompt="a purple circle", num_inference_steps=FEW, strength=0.3))


def test_it_works_by_keyboard_alone(new_tab):
    tab = new_tab()
    for _ in range(60):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.closest('#generate-prompt') !== null"):
            break
    tab.keyboard.type("a red circle")
    for _ in range(60):
        tab.keyboard.press("Tab")
        if tab.evaluate("document.activeElement.id") == "generate-draw":
            break
    tab.keyboard.press("Enter")
    assert only_object(result(tab)).shape == "circle"


@pytest.mark.parametrize("language, scheme", [("en", "light"), ("zh", "dark")])
def test_axe_finds_no_serious_fault(new_tab, language, scheme, tmp_path_factory):
    from axe_playwright_python.sync_playwright import Axe

    tab = new_tab(language, color_scheme=scheme)
    tab.wait_for_timeout(1000)
    found = {}
    for index, name in enumerate(tab.get_by_role("tab").all_inner_texts()):
        open_tab_of(tab, name)
        tab.wait_for_timeout(300)
        if index == 0:
            for accordion in tab.locator("button.label-wrap").all():
                if accordion.is_visible():
                    accordion.click()
            tab.wait_for_timeout(500)
        report = Axe().run(tab).response
        for violation in report["violations"]:
            if violation["impact"] in ("serious", "critical"):
                found.setdefault(violation["id"], set()).update(n["html"][:200] for n in violation["nodes"])
    assert not found, json.dumps({rule: sorted(nodes)[:6] for rule, nodes in found.items()}, indent=1)


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("width", [1280, 375])
def test_it_fits_the_screen(new_tab, language, width, tmp_path):
    tab = new_tab(language, viewport={"width": width, "height": 800})
    ask(tab, prompt="a red circle", num_inference_steps=FEW)
    tab.screenshot(path=str(tmp_path / f"page-{language}-{width}.png"), full_page=True)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    box = tab.locator("#generate-draw").bounding_box()
    assert 0 <= box["x"] and box["x"] + box["width"] <= width


def test_nothing_else_is_served(new_tab, served):
    tab = new_tab()
    get = tab.request.get
    picture = next(iter(served.output.glob("*.png")), None)
    if picture is None:
        ask(tab, prompt="a red circle", num_inference_steps="2")
        picture = next(served.output.glob("*.png"))
    served_at = f"{served.address}en/gradio_api/file="
    assert get(f"{served_at}{picture}").status == 200
    (served.output / "link.png").unlink(missing_ok=True)
    (served.output / "link.png").symlink_to(served.output.parent / "secret.png")
    for path in (
        "/etc/passwd",
        f"{served.output}/../secret.png",
        f"{served.output}/link.png",
        f"{served.output}/../log",
    ):
        assert get(served_at + path).status == 403, path
        assert get(served_at + path.replace("/", "%2F")).status in (403, 404), path
    assert get(served.address, headers={"Host": "evil.example"}).status == 403
    event = {
        "fn_index": 0,
        "session_hash": "x",
        "data": [{"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}],
    }
    assert tab.request.post(f"{served.address}en/gradio_api/queue/join", data=event).status == 400
    refused = tab.request.post(
        f"{served.address}en/gradio_api/upload",
        multipart={"files": {"name": "large.png", "mimeType": "image/png", "buffer": b"0" * 22_000_000}},
    )
    assert refused.status == 413
