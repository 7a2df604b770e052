"""Knobs: a control that redraws in a live kernel, and a pre-rendered one where there is no kernel."""

import hashlib
import html
import itertools
import json
from collections.abc import Callable, Mapping, Sequence
from numbers import Real

from PIL.Image import Image

from lefcourse.errors import UsageError, choice
from lefcourse.progress import batch, in_notebook
from lefcourse.settings import budget_name

LIMIT = 1_500_000  # bytes of a knob's pre-rendered frames


def explore(
    draw: Callable,
    *,
    alt: str | Callable,
    caption: str,
    start: dict | None = None,
    **knobs: Sequence,
) -> None:
    """Show `draw(**values)`, a figure, under one or two knobs that choose the values.

    `knobs` maps a name to its values, in order: `explore(draw, rate=[0, 0.2, 0.4], ...)`; numbers make a
    slider, words a menu. `start` chooses the first picture (default: each knob's middle value). `alt` is a
    text or a function of the values. In a live kernel the picture is drawn when the knob moves. In a
    notebook that a program executes, every value is drawn once, and errors are not caught: what remains
    is a control that needs no kernel and no network.
    Raises UsageError for no or more than two knobs, for a start that is none of a knob's values, and if the
    frames exceed 1.5 MB.
    """
    if not 1 <= len(knobs) <= 2:
        raise UsageError(
            f"explore takes one or two knobs, got {len(knobs)}: {', '.join(knobs) or 'none'}"
        )
    for name in start or {}:
        choice("knob", name, knobs)
    start = {name: values[len(values) // 2] for name, values in knobs.items()} | (start or {})
    for name, values in knobs.items():
        if start[name] not in values:
            raise UsageError(f"{name} cannot start at {start[name]!r}: its values are {values}")
    if in_notebook() and not batch():
        return _live(draw, alt, caption, start, knobs)
    return _static(draw, alt, caption, start, knobs)


def _text(alt: str | Callable, values: Mapping) -> str:
    return alt(**values) if callable(alt) else alt


def _label(name: str) -> str:
    return name.replace("_", " ")


def _words(values: Sequence) -> list[str]:
    return [f"{v:g}" if isinstance(v, float) else str(v) for v in values]


def _slides(values: Sequence) -> bool:
    """Numbers slide; words, and True and False, are chosen from a menu."""
    return all(isinstance(v, Real) and not isinstance(v, bool) for v in values)


def _img(uri: str, alt: str) -> str:
    look = "width:700px;max-width:100%;height:auto;background:white"
    return f'<img src="{uri}" alt="{html.escape(alt)}" style="{look}">'


def _caption(caption: str) -> str:
    return f"<figcaption>{html.escape(caption)}</figcaption>"


# --- with a kernel -------------------------------------------------------------------------------


def _live(draw, alt, caption, start, knobs) -> None:
    import ipywidgets as widgets
    from IPython.display import display

    from lefcourse.page.plot import Caption, Shown, image_uri, render

    controls = {name: _control(name, values, start[name]) for name, values in knobs.items()}
    # What drawing prints, its progress bars and its errors are seen below the picture.
    picture, below = widgets.HTML(), widgets.Output()

    def redraw() -> Shown:
        values = {name: control.value for name, control in controls.items()}
        drawn = render(draw(**values))
        picture.value = _img(image_uri(drawn), _text(alt, values)) + _caption(caption)
        return Shown(picture.value, drawn)

    def turned(_) -> None:
        below.clear_output()
        with below:
            redraw()

    class Knob(widgets.VBox):
        """The control, and for a viewer without a kernel the picture that it began with."""

        def _repr_mimebundle_(self, **more) -> dict:
            still = {"text/html": first._repr_html_(), "image/png": first._repr_png_()}
            return super()._repr_mimebundle_(**more) | still | {"text/plain": caption}

    first = redraw()
    for control in controls.values():
        control.observe(turned, names="value")
    display(Knob([*controls.values(), picture, below]))
    display(Caption(caption))


def _control(name: str, values: Sequence, value: object):
    import ipywidgets as widgets

    options = [*zip(_words(values), values, strict=True)]
    look = {"description": _label(name), "style": {"description_width": "initial"}}
    if not _slides(values):
        return widgets.Dropdown(options=options, value=value, **look)
    slider = dict(continuous_update=False, layout={"width": "26em"})
    return widgets.SelectionSlider(options=options, value=value, **look, **slider)


# --- without -------------------------------------------------------------------------------------


def _static(draw, alt, caption, start, knobs) -> None:
    from IPython.display import display

    from lefcourse.page.plot import Caption, Shown

    first, frames = _frames(draw, alt, start, knobs)
    size = sum(len(frame["src"]) for frame in frames)
    if size > LIMIT:
        raise UsageError(
            f"a knob's {len(frames)} frames take {size / 1e6:.1f} MB, more than {LIMIT / 1e6:.1f} MB: "
            "use fewer values or a smaller figure"
        )
    display(Shown(_page(frames, caption, start, knobs), first))
    display(Caption(caption))


def _frames(draw, alt, start, knobs) -> tuple[Image, list[dict[str, str]]]:
    """Draw every combination of the knobs' values; the last knob turns fastest. The picture at `start` comes first.

    At the smoke budget one knob is turned at a time; where both are away from `start`, its picture stands in.
    """
    from lefcourse.page.plot import image_uri, render

    first, frames = render(draw(**start), dpi=110), []
    for row in itertools.product(*knobs.values()):
        values = dict(zip(knobs, row, strict=True))
        turned = sum(values[name] != start[name] for name in knobs)
        quick = turned == 0 or (turned == 2 and budget_name() == "smoke")
        picture = first if quick else render(draw(**values), dpi=110)
        frames.append({"src": image_uri(picture, lossless=False), "alt": _text(alt, values)})
    return first, frames


def _page(frames: list, caption: str, start: Mapping, knobs: Mapping) -> str:
    """One <figure>: the controls, the first picture, and a script that swaps it.

    A viewer that drops scripts still shows the picture, and one that copies the notebook needs no other file.
    """
    at = [list(values).index(start[name]) for name, values in knobs.items()]
    sizes = [len(values) for values in knobs.values()]
    first = frames[at[0] if len(at) == 1 else at[0] * sizes[1] + at[1]]
    content = json.dumps(frames).replace("<", "\\u003c")
    ident = "lef-" + hashlib.sha256((caption + content).encode()).hexdigest()[:8]
    fields = "".join(
        _field(f"{ident}-{k}", name, values, position)
        for k, ((name, values), position) in enumerate(zip(knobs.items(), at, strict=True))
    )
    return (
        f'<figure class="lef-knob" id="{ident}" style="margin:1em 0">'
        f'<div class="lef-controls">{fields}</div>'
        f"{_img(first['src'], first['alt'])}{_caption(caption)}"
        f'<script type="application/json">{content}</script>'
        f"<script>{_SCRIPT % {'ident': ident, 'sizes': sizes}}</script></figure>"
    )


def _field(ident: str, name: str, values: Sequence, at: int) -> str:
    """A labelled slider with its value before it and its ends on both sides, or a labelled menu."""
    words = [html.escape(word) for word in _words(values)]
    label = f'<label for="{ident}" style="min-width:2em">{html.escape(_label(name))}</label>'
    if _slides(values):
        field = (
            f'<output for="{ident}" style="font-weight:bold;min-width:3em">{words[at]}</output>'
            f'<span aria-hidden="true" style="opacity:.75">{words[0]}</span>'
            f'<input type="range" id="{ident}" min="0" max="{len(words) - 1}" value="{at}" '
            f'aria-valuetext="{words[at]}" data-words="{html.escape(json.dumps(_words(values)))}" '
            f'style="flex:0 1 18em;min-width:6em">'
            f'<span aria-hidden="true" style="opacity:.75">{words[-1]}</span>'
        )
    else:
        chosen = ["", " selected"]
        options = "".join(
            f'<option value="{k}"{chosen[k == at]}>{word}</option>' for k, word in enumerate(words)
        )
        field = f'<select id="{ident}">{options}</select>'
    row = "display:flex;flex-wrap:wrap;align-items:center;gap:.3em .6em;margin:.3em 0"
    return f'<div style="{row}">{label}{field}</div>'


# The picture's number is that of the combination of values: the last knob turns fastest.
_SCRIPT = """(function(){
const box=document.getElementById('%(ident)s'),img=box.querySelector('img'),sizes=%(sizes)s,
frames=JSON.parse(box.querySelector('script').textContent),fields=[...box.querySelectorAll('input,select')];
function turn(){let i=0;fields.forEach((f,k)=>{i=i*sizes[k]+Number(f.value);
if(f.type==='range'){const w=JSON.parse(f.dataset.words)[f.value];
f.setAttribute('aria-valuetext',w);box.querySelector('output[for="'+f.id+'"]').textContent=w;}});
img.src=frames[i].src;img.alt=frames[i].alt;}
fields.forEach(f=>f.addEventListener('input',turn));turn();})();"""
