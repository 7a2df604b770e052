"""A picture for each part: ten examples, and what is known of their labels.

A card is an example, the shape on it its true class, and the tag below it the label that is given; a dashed tag is
a label that nobody gave. Drawn as SVG in the colours of the page, so that it is legible in both themes.
"""

import html
from collections.abc import Callable

from lefcourse.palette import BLUE, GREEN, ORANGE

COLOURS = (BLUE, ORANGE, GREEN)  # by class
NAMES = ("disc", "square", "wedge")
TRUTH = (0, 2, 1, 0, 1, 2, 2, 0, 1, 0)
STEP, WIDTH, HEIGHT = 62, 620, 92

Picture = tuple[str, Callable[[int], str]]  # what to see, and the drawing of card k


def svg(folder: str) -> str:
    """Return the picture of a part with its caption, as one HTML figure."""
    caption, draw = PICTURES[folder]
    cards = "".join(f'<g transform="translate({STEP * k} 0)">{draw(k)}</g>' for k in range(10))
    return (
        f'<figure class="lef-part"><svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{html.escape(caption)}">{cards}</svg><figcaption>{html.escape(caption)}</figcaption></figure>'
    )


def shape(c: int, x: float = 29, y: float = 29, r: float = 14, extra: str = "") -> str:
    """Draw class c: a disc, a square, a triangle, or (3) a star that is none of these."""
    fill = f'fill="{COLOURS[c]}"' if c < 3 else 'fill="currentColor"'
    if c == 0:
        return f'<circle cx="{x}" cy="{y}" r="{r}" {fill} {extra}/>'
    if c == 1:
        a = 0.88 * r
        return f'<rect x="{x - a:g}" y="{y - a:g}" width="{2 * a:g}" height="{2 * a:g}" {fill} {extra}/>'
    corners = {
        2: [(0, -1.05), (1.05, 0.85), (-1.05, 0.85)],
        3: [(0, -1.1), (0.3, -0.3), (1.1, 0), (0.3, 0.3), (0, 1.1), (-0.3, 0.3), (-1.1, 0), (-0.3, -0.3)],
    }[c]  # fmt: skip
    points = " ".join(f"{x + r * a:g},{y + r * b:g}" for a, b in corners)
    return f'<polygon points="{points}" {fill} {extra}/>'


def frame(dashed: bool = False) -> str:
    """Draw the edge of a card."""
    look = 'stroke-dasharray="3 3"' if dashed else ""
    return f'<rect class="lef-card" x="3" y="3" width="52" height="52" rx="6" {look}/>'


def tag(c: int | None, x: float = 9, width: float = 40, y: float = 64) -> str:
    """Draw a label under a card: of class c, or absent."""
    look = 'class="absent"' if c is None else f'fill="{COLOURS[c]}"'
    return f'<rect x="{x}" y="{y}" width="{width}" height="14" rx="7" {look}/>'


def word(text: str, x: float = 29, y: float = 75) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="middle">{text}</text>'


def card(k: int) -> str:
    return frame() + shape(TRUTH[k])


def _few(k: int) -> str:
    return card(k) + tag(TRUTH[k] if k in (1, 4, 7) else None)


def _hidden(k: int) -> str:
    half = ("3 3 52 26", "3 29 52 26", "3 3 26 52", "29 3 26 52")[k % 4].split()
    mask = 'class="mask" x="{}" y="{}" width="{}" height="{}"'.format(*half)
    return card(k) + f"<rect {mask}/>" + tag(None)


def _noisy(k: int) -> str:
    wrong = k in (1, 2, 5, 8)
    return card(k) + tag((TRUTH[k] + wrong) % 3)


def _several(k: int) -> str:
    one, other = TRUTH[k], (TRUTH[k] + 1 + k % 2) % 3
    shapes = shape(one, 20, 22, 10) + shape(other, 38, 38, 10)
    known = other if k in (0, 3, 8) else None
    return frame() + shapes + tag(one, 9, 19) + tag(known, 30, 19)


def _tail(k: int) -> str:
    copies = (5, 4, 3, 3, 2, 2, 1, 1, 1, 1)[k]
    stack = "".join(
        f'<rect class="lef-card" x="3" y="{44 - 9 * i}" width="52" height="14" rx="4"/>'
        for i in range(copies)
    )
    branch = f"M29 80 V{86} M{29 if k == 0 else -STEP + 29} 86 H29"
    return stack + tag(k % 3, y=64) + f'<path class="line" d="{branch}"/>'


def _words(k: int) -> str:
    return card(k) + word(NAMES[TRUTH[k]])


def _bags(k: int) -> str:
    small = "".join(
        shape((TRUTH[k] + i * (i > 1)) % 3, 18 + 22 * (i % 2), 18 + 22 * (i // 2), 8)
        for i in range(4)
    )
    ring = '<rect class="bag" x="3" y="3" width="52" height="52" rx="18"/>'
    return ring + small + word(("2 of 4", "some", "none")[k % 3])


def _pixels(k: int) -> str:
    c, outline = TRUTH[k], 'style="fill:none;stroke:currentColor;stroke-width:1.5"'
    if k in (2, 6):
        return frame() + shape(c) + tag(c)
    box = '<rect class="bag" x="11" y="11" width="36" height="36"/>' if k == 8 else ""
    return frame() + shape(c, extra=outline) + box + tag(c if k == 8 else None)


def _unknown(k: int) -> str:
    strange = k in (3, 6, 9)
    return (
        frame(strange)
        + shape(3 if strange else TRUTH[k])
        + (word("?") if strange else tag(TRUTH[k]))
    )


def _handful(k: int) -> str:
    if k < 3:
        return frame() + shape(3) + word("this")
    return (
        frame(True)
        + (shape(3) if k % 3 == 1 else shape(TRUTH[k]))
        + word("this?" if k % 3 == 1 else "")
    )


def _forget(k: int) -> str:
    gone = TRUTH[k] == 2
    strike = '<path class="line" d="M5 78 L53 64"/>' if gone else ""
    faded = f'<g opacity="0.25">{card(k)}{tag(TRUTH[k])}</g>'
    return (faded if gone else card(k) + tag(TRUTH[k])) + strike


PICTURES: dict[str, Picture] = {
    "01-what-a-label-says": ("Every example has its label. What is in it?", lambda k: card(k) + tag(TRUTH[k])),
    "02-few-labels": ("Three of ten examples are labeled; the others are there all the same.", _few),
    "03-no-labels": ("No label at all. The hidden half of each example becomes the thing to predict.", _hidden),
    "04-noisy-labels": ("Every example has a label, and four of the ten labels lie.", _noisy),
    "05-many-labels": ("Two labels are right for every example, and one of them is seldom given.", _several),
    "06-label-spaces": ("Common and rare labels, and neighbours among them.", _tail),
    "07-words-as-labels": ("The labels are words, and words know each other.", _words),
    "08-weak-labels": ("One label for a whole bag of examples.", _bags),
    "09-few-labelled-pixels": ("Two full masks and a box; all other outlines are for the model to find.", _pixels),
    "10-beyond-the-label-set": ("Three examples belong to no class that has a name.", _unknown),
    "11-a-handful-of-examples": ("Three examples of something new. Which of the others are it too?", _handful),
    "12-labels-to-keep-or-forget": ("Some labels, and what was learned from them, have to go.", _forget),
}  # fmt: skip
