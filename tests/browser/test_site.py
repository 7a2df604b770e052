"""The book as a reader meets it: every page, its formulas, knobs, search, label map, themes, a phone."""

import os
import re
from pathlib import Path

import pytest

ELR = "04-noisy-labels/elr.html"
PHONE = {"viewport": {"width": 390, "height": 844}}
DARK = {"color_scheme": "dark"}
# Text as the reader sees it, without code (which may hold TeX) and without what MathJax keeps for screen readers.
PROSE = """() => {
    const copy = document.querySelector('main, body').cloneNode(true);
    copy.querySelectorAll('pre, code, script, style, mjx-container').forEach(e => e.remove());
    return copy.textContent;
}"""
OVER = "document.scrollingElement.scrollWidth - document.scrollingElement.clientWidth"
# What must be scrolled sideways to be read; folded cells are opened first.
SIDEWAYS = """(what) => {
    document.querySelectorAll('main details').forEach(fold => fold.open = true);
    return [...document.querySelectorAll(what)].filter(e => e.scrollWidth > e.clientWidth + 1)
        .map(e => `${e.tagName} of ${e.scrollWidth} in ${e.clientWidth} px: ${e.textContent.trim().slice(0, 60)}`);
}"""
FORMULA, TEXT = "main mjx-container[display=true]", "main pre, main table, main .output"
RAW_TEX = re.compile(r"\\\(|\\\[|\$\$|\\(frac|mathrm|lambda|sum|text|langle|beta|begin)\b")


def pages(site: Path) -> list[str]:
    names = [path.relative_to(site).as_posix() for path in sorted(site.rglob("*.html"))]
    return [name for name in names if not name.startswith("_static/")]


def test_every_page_loads_from_the_site_alone_and_fits_a_phone(watched, site, address):
    problems = []
    for name in pages(site):
        page = watched.open(f"{address}/{name}")
        if tex := RAW_TEX.search(page.evaluate(PROSE)):
            watched.problems.append(f"raw TeX {tex[0]!r}")
        if broken := page.locator("mjx-merror, [data-mjx-error]").count():
            watched.problems.append(f"{broken} formulas that MathJax could not read")
        for width in (1400, PHONE["viewport"]["width"]):
            page.set_viewport_size({"width": width, "height": 844})
            page.evaluate(
                "() => new Promise(done => requestAnimationFrame(() => setTimeout(done, 20)))"
            )
            if (over := page.evaluate(OVER)) > 0:
                watched.problems.append(f"{over} px too wide for {width}")
            # On a phone code scrolls inside itself, in tables and outputs too; nothing else does.
            phone = "main .cell_output pre, main table"
            what = f"{FORMULA}, {TEXT if width > 1000 else phone}"
            watched.problems += [f"at {width}: {wide}" for wide in page.evaluate(SIDEWAYS, what)]
        page.emulate_media(media="print")
        page.set_viewport_size({"width": 718, "height": 1000})  # A4 less its margins
        watched.problems += [f"printed: {cut}" for cut in page.evaluate(SIDEWAYS, "main pre")]
        page.close()
        problems += [f"{name}: {problem}" for problem in watched.problems]
        watched.problems.clear()
    assert not problems, "\n".join(problems)
    assert len(pages(site)) > 15


def test_formulas_are_set(watched, address):
    page = watched.open(f"{address}/{ELR}")
    assert page.locator("mjx-container").count() > 20
    glyph = page.locator("mjx-container mjx-c").first.bounding_box()
    assert glyph["width"] > 2 and glyph["height"] > 2


def test_tables_that_cells_print_are_set(watched, address):
    page = watched.open(f"{address}/{ELR}")
    assert page.locator(".cell_output th", has_text="claim").count() == 1
    shown = page.locator(".cell_output").all_inner_texts()
    assert not [text for text in shown if text.lstrip().startswith("|")]


@pytest.mark.skipif(
    "LEFCOURSE_TIMED" not in os.environ, reason="a time, for a quiet machine: LEFCOURSE_TIMED=1"
)
def test_first_page_is_usable_within_a_second(watched, address):
    times = []
    for _ in range(3):
        page = watched.open(f"{address}/index.html")
        times.append(
            page.evaluate("performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
        )
        page.close()
    assert min(times) < 1000, f"{times} ms"


@pytest.mark.parametrize("watched", [{}, PHONE], indirect=True, ids=["desktop", "phone"])
def test_knob_changes_the_picture(watched, address):
    page = watched.open(f"{address}/{ELR}")
    knob = page.locator("figure.lef-knob").first
    picture, slider, value = (knob.locator(e) for e in ("img", "input[type=range]", "output"))
    slider.scroll_into_view_if_needed()
    seen = [(picture.get_attribute("src"), picture.get_attribute("alt"), value.text_content())]

    def look() -> None:
        now = (picture.get_attribute("src"), picture.get_attribute("alt"), value.text_content())
        assert all(new != old for new, old in zip(now, seen[-1], strict=True))
        assert slider.get_attribute("aria-valuetext") == now[2]
        seen.append(now)

    box = slider.bounding_box()
    page.mouse.click(box["x"] + 3, box["y"] + box["height"] / 2)
    look()
    slider.focus()
    page.keyboard.press("ArrowRight")
    look()
    page.keyboard.press("End")
    look()
    assert page.get_by_label("λ", exact=True).count() == 1


@pytest.mark.parametrize("watched", [{"java_script_enabled": False}], indirect=True)
def test_without_scripts_the_first_picture_is_there(watched, address):
    page = watched.context.new_page()
    page.goto(f"{address}/{ELR}")
    assert page.locator("figure.lef-knob img").first.is_visible()
    assert page.locator("figure.lef-knob img").first.evaluate("e => e.naturalWidth") > 300


def test_solutions_are_folded(watched, address):
    page = watched.open(f"{address}/{ELR}")
    solution = page.locator("div.tag_solution").first
    code = solution.locator(".highlight").first
    assert not code.is_visible()
    solution.locator("summary").first.click()
    assert code.is_visible()


def test_search_finds_memorization(watched, address):
    page = watched.open(f"{address}/search.html?q=memorization")
    hit = page.locator("#search-results a", has_text="ELR").first
    hit.wait_for()
    hit.click()
    assert page.url.split("?")[0].endswith(ELR)


# The landing page's result: curves that grow, or a picture that changes.
HERO = "document.querySelector('.lef-hero').querySelector('polyline, img')"
MOVING = f"{HERO}.getAttribute('points') || {HERO}.getAttribute('src')"


def test_landing_page_moves(watched, address):
    page = watched.context.new_page()
    page.clock.install(time=0)
    page.clock.pause_at(1)
    page.goto(f"{address}/index.html")
    tick = int(page.locator(".lef-hero").get_attribute("data-tick"))
    before = page.evaluate(MOVING)
    page.clock.run_for(tick + 1)
    moved = page.evaluate(MOVING)
    assert moved != before
    page.get_by_role("button", name="Pause").click()
    page.clock.run_for(10 * tick)
    assert page.evaluate(MOVING) == moved
    page.get_by_role("button", name="Play").click()
    page.clock.run_for(tick + 1)
    assert page.evaluate(MOVING) != moved
    box = page.locator(".lef-hero").bounding_box()  # all of it on one screen
    assert box["y"] + box["height"] <= 900


@pytest.mark.parametrize("watched", [{"reduced_motion": "reduce"}], indirect=True)
def test_landing_page_rests_for_those_who_ask(watched, address):
    page = watched.open(f"{address}/index.html")
    before = page.evaluate(MOVING)
    page.wait_for_timeout(2000)
    assert page.evaluate(MOVING) == before
    assert page.get_by_role("button", name="Play").is_visible()


def test_label_map_leads_from_noisy_to_elr(watched, address):
    page = watched.open(f"{address}/label-map.html")
    found = page.locator(".lef-found li:visible")
    everything = found.count()
    page.locator(".lef-map label:has(input[value=noisy])").click()
    page.locator(".lef-map label:has(input[value=classification])").click()
    assert 0 < found.count() < everything
    assert f"{found.count()} chapters fit" in page.locator(".lef-count").text_content()
    shared = page.url
    found.get_by_role("link", name="ELR", exact=True).click()
    page.wait_for_url(f"**/{ELR}")
    again = watched.open(shared)
    assert again.locator(".lef-map input[value=noisy]").is_checked()


def test_label_map_by_keyboard(watched, address):
    page = watched.open(f"{address}/label-map.html")
    page.locator(".lef-map input").first.focus()
    for _ in range(20):
        page.keyboard.press("ArrowDown")
        if page.evaluate("document.activeElement.value") == "noisy":
            break
    assert page.locator(".lef-map input[value=noisy]").is_checked()
    for _ in range(30):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "ELR":
            break
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/{ELR}")


# The contrast of every piece of text with what lies behind it, as WCAG computes it; below the limit, it is listed.
CONTRAST = """limit => {
    const rgb = text => (text.match(/[\\d.]+/g) || []).map(Number);
    const light = c => { const [r, g, b] = c.map(v => (v /= 255) <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
                         return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    const behind = e => { for (; e; e = e.parentElement) { const c = rgb(getComputedStyle(e).backgroundColor);
                            if (c.length === 3 || c[3] > 0.9) return c.slice(0, 3); } return [255, 255, 255]; };
    const bad = [];
    for (const e of document.querySelectorAll('main :is(p, li, td, th, a, h1, h2, h3, span, code, figcaption, label, small, output, button, select, summary)')) {
        const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
        if (!own || !e.checkVisibility({ visibilityProperty: true, opacityProperty: true }) || e.closest('mjx-assistive-mml, .headerlink, .tocsection')) continue;
        const [a, b] = [light(rgb(getComputedStyle(e).color).slice(0, 3)), light(behind(e))];
        const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
        if (ratio < limit) bad.push(`${ratio.toFixed(1)} <${e.tagName.toLowerCase()} class="${e.className}"> ${e.textContent.trim().slice(0, 40)}`);
    }
    return [...new Set(bad)].slice(0, 12);
}"""


@pytest.mark.parametrize("watched", [{}, DARK], indirect=True, ids=["light", "dark"])
@pytest.mark.parametrize("name", ["index.html", "label-map.html", "results.html", ELR])
def test_text_is_legible(watched, address, name, request):
    page = watched.open(f"{address}/{name}")
    theme = page.evaluate("document.documentElement.dataset.theme")
    assert theme == ("dark" if "dark" in request.node.callspec.id else "light")
    assert page.evaluate(CONTRAST, 4.5) == []
