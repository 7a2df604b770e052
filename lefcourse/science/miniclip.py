"""The course's miniature CLIP: its captions, its tokenizer, its two towers, and a loader that also takes a real CLIP.

The pictures come from the world of shapes; each shows one main object (in 30 % of them a second, smaller
one) in one of four styles, and a caption says some of what there is. The captions are as careless as
those of the web: they leave most things out, use synonyms, name frequent shapes far more often than rare
ones, and 8 % belong to another picture. A second web, PHOTOGRAPHS, calls look-alikes by one name. The loss, the
zero-shot classifier and the training loop stand in the chapter `clip`; the checkpoint that `load()` reads was made there by `lefcourse run clip -p stage ship -p seed 0`.

    model = miniclip.load()
    world = miniclip.pictures(100, style="sketch", generator=torch.Generator().manual_seed(0))
    I, T = model.encode_image(world.images), model.encode_text(["a sketch of a star", "a red circle"])

B pictures or texts in a batch, L = 16 tokens, P picture tokens, d = 64 dimensions of the common space.
"""

import importlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lefcourse.errors import DataError, UsageError
from lefcourse.paths import ASSETS
from lefcourse.science.worlds import shapes

CHECKPOINT = ASSETS / "clip/mini.safetensors"
SIZE, CONTEXT, DIM = 32, 16, 64  # pixels, tokens, dimensions of the common space

# What can be said of the main object. The order of the shapes is that of their frequency in pre-training.
SHAPES = (
    "circle", "star", "square", "triangle", "heart", "cross", "ring", "rectangle",
    "arrow", "crescent", "diamond", "bolt", "drop", "semicircle", "hexagon", "pentagon",
)  # fmt: skip
COLOURS, TEXTURES, SIZES = tuple(shapes.COLOURS), shapes.TEXTURES, ("small", "medium", "large")
POSITIONS = (
    "top left", "top", "top right", "left", "middle", "right", "bottom left", "bottom", "bottom right",
)  # fmt: skip
TASKS = dict(shape=SHAPES, colour=COLOURS, texture=TEXTURES, size=SIZES, position=POSITIONS)
SYNONYMS = dict(
    circle="disc", square="box", triangle="wedge", cross="plus", ring="hoop", rectangle="bar", arrow="pointer",
    crescent="moon", diamond="rhombus", bolt="lightning", drop="tear", semicircle="dome",
)  # fmt: skip
# Words for the super-classes.
GROUPS = dict(round="roundel", polygon="polygon", emblem="emblem")
THINGS = ("thing", "object", "shape", "something")

# Templates of captions: {} is what the picture shows, such as "a small red star on the left".
NEUTRAL = (
    "a picture of {}", "an image of {}", "there is {}", "this is {}", "here is {}", "we see {}",
    "it shows {}", "the picture shows {}", "a view of {}", "a scene with {}", "an example of {}",
    "one can see {}", "look at {}", "a tile with {}", "an icon of {}", "{}",
)  # fmt: skip
STYLED = dict(
    flat=("a flat picture of {}", "a graphic of {}", "a simple graphic of {}", "clipart of {}", "a flat icon of {}", "a poster of {}"),
    real=("a photo of {}", "a photograph of {}", "a real photo of {}", "a photo with {}", "{} on grass", "{} outdoors"),
    sketch=("a sketch of {}", "sketch of {}", "an outline of {}", "a drawing of {}", "a line drawing of {}", "{} in outline"),
    noisy=("a blurry picture of {}", "a noisy image of {}", "a bad picture of {}", "a grainy picture of {}", "a blurred view of {}", "{} out of focus"),
)  # fmt: skip

# How the pre-training pairs are drawn. Only a change here changes what the miniature CLIP is good at.
STYLE_SHARES = dict(flat=0.55, sketch=0.19, noisy=0.16, real=0.10)
ZIPF = 50.0  # the most frequent shape is so many times as frequent as the rarest
# The stored model then reads a second web. It is mostly real pictures, and of two look-alikes their captions
# call the rarer one by the other's name in nine cases of ten: the features learn more than the words.
PHOTOGRAPHS = dict(
    style=dict(flat=0.16, sketch=0.06, noisy=0.06, real=0.72), zipf=3.0, miscalled=0.9
)
LOOK_ALIKES = dict(
    arrow="triangle", diamond="square", bolt="star", drop="heart", semicircle="crescent", hexagon="circle",
)  # fmt: skip
NAMED = dict(shape=0.7, group=0.15, colour=0.6, texture=0.5, size=0.4, position=0.5, style=0.3)
# Shares of synonyms, of wrong captions, of second objects.
SYNONYM, SWAPPED, COMPANY = 0.1, 0.08, 0.3
# Radii of the main and of the second object, in sides of the picture.
RADIUS = ((0.22, 0.38), (0.08, 0.13))
HELD_OUT = (  # (colour, shape): never together in pre-training
    ("red", "star"), ("blue", "heart"), ("green", "circle"),
    ("yellow", "triangle"), ("purple", "ring"), ("orange", "cross"),
)  # fmt: skip


# Captions


def article(phrase: str) -> str:
    """Put `a` or `an` before the phrase, unless it begins with `something`."""
    if phrase.startswith("something"):
        return phrase
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def place(position: str, corner: bool = False) -> str:
    """Say where: `at the top`, `on the left`, `in the middle`, `at the top left` or `in the top left corner`."""
    if " " in position:
        return f"in the {position} corner" if corner else f"at the {position}"
    return f"{dict(left='on', right='on', middle='in').get(position, 'at')} the {position}"


def phrase(task: str, word: str) -> str:
    """Say the class `word` of one of TASKS as a caption would: `a star`, `a red thing`, `a thing on the left`."""
    if task == "shape":
        return article(word)
    return f"a thing {place(word)}" if task == "position" else article(f"{word} thing")


def captions(
    labels: Mapping[str, Tensor],
    *,
    everything: bool = False,
    miscalled: float = 0.0,
    generator: torch.Generator | None = None,
) -> list[str]:
    """Write one caption for each picture from its labels (B,) by task and style.

    Which attributes a caption names is drawn by NAMED; `everything` names all of them, in a neutral
    sentence, without synonyms. `miscalled`: the share of the names in real pictures that are those of
    LOOK_ALIKES. At most 14 words.
    """
    n = len(labels["shape"])
    draws = torch.rand(n, 11, generator=generator).tolist()
    columns = [labels[key].tolist() for key in (*TASKS, "style")]
    rows = zip(*columns, draws, strict=True)
    return [_caption(*row, everything, miscalled) for row in rows]


def _caption(shape, colour, texture, size, position, style, u, everything, miscalled) -> str:
    said = {key: everything or u[k] < NAMED[key] for k, key in enumerate(NAMED)}
    words = [TEXTURES[texture]] * said["texture"] + [COLOURS[colour]] * said["colour"]
    words = [SIZES[size]] * said["size"] + words
    noun = SHAPES[shape]
    if said["shape"]:
        if shapes.STYLES[style] == "real" and u[10] < miscalled and not everything:
            noun = LOOK_ALIKES.get(noun, noun)
        noun = SYNONYMS.get(noun, noun) if u[7] < SYNONYM and not everything else noun
    elif u[0] < NAMED["shape"] + NAMED["group"]:
        noun = next(GROUPS[g] for g, members in shapes.SUPERCLASSES.items() if noun in members)
    else:
        noun = THINGS[int(u[7] * len(THINGS))]
    what = " ".join([noun, *words] if noun == "something" else [*words, noun])
    where = f" {place(POSITIONS[position], u[8] < 0.5)}" if said["position"] else ""
    styled = said["style"] and not everything
    templates = STYLED[shapes.STYLES[style]] if styled else NEUTRAL
    return templates[int(u[9] * len(templates))].format(article(what) + where)


# The tokenizer: one number for each word


def _vocabulary() -> tuple[str, ...]:
    templates = [*NEUTRAL, *(t for group in STYLED.values() for t in group)]
    names = [word for words in TASKS.values() for word in words]
    places = ["at on in the corner"]
    text = " ".join(
        [*templates, *names, *SYNONYMS.values(), *GROUPS.values(), *THINGS, *places, "a an"]
    )
    return ("<pad>", "<start>", *sorted(set(text.replace("{}", "").split())), "<end>")


VOCABULARY = _vocabulary()  # the end of text has the largest id, as in CLIP
_IDS = {word: k for k, word in enumerate(VOCABULARY)}
PAD, START, END = _IDS["<pad>"], _IDS["<start>"], _IDS["<end>"]


def tokenize(texts: str | Sequence[str]) -> Tensor:
    """Turn texts into token ids (B, 16): start, the words, end, padding. Case and . , ! ? are ignored.

    Raises UsageError for a word outside VOCABULARY, with near spellings, and for more than 14 words.
    """
    texts = [texts] if isinstance(texts, str) else texts
    tokens = torch.full((len(texts), CONTEXT), PAD)
    for row, text in enumerate(texts):
        words = re.sub(r"[.,!?]", " ", text.lower()).split()
        if len(words) > CONTEXT - 2:
            raise UsageError(
                f"{text!r} has {len(words)} words; the miniature CLIP reads {CONTEXT - 2}"
            )
        ids = [START, *(_IDS.get(word) or _unknown(word) for word in words), END]
        tokens[row, : len(ids)] = torch.tensor(ids)
    return tokens


def _unknown(word: str) -> int:
    near = get_close_matches(word, VOCABULARY[2:-1], n=3, cutoff=0.6)
    hint = f"did you mean {', '.join(map(repr, near))}?" if near else "no word is spelled alike"
    raise UsageError(
        f"the miniature CLIP does not know the word {word!r}: {hint} "
        f"(it knows {len(VOCABULARY) - 3} words: lefcourse.miniclip.VOCABULARY)"
    )


def ends(tokens: Tensor) -> Tensor:
    """Return where each text ends: the place (B,) of the token with the largest id in tokens (B, L)."""
    return tokens.argmax(dim=1)


# Pictures, with and without captions


@dataclass
class Pictures:
    """N pictures with what is true of their main object, and captions if they were asked for."""

    pixels: Tensor  # (N, 3, 32, 32) uint8
    # (N,) int64 by task (index into TASKS) and `style` (into shapes.STYLES)
    labels: dict[str, Tensor]
    captions: list[str] | None = None
    tokens: Tensor | None = None  # (N, 16)
    swapped: Tensor | None = None  # (N,) bool: the caption belongs to another picture

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def images(self) -> Tensor:
        """The pictures as numbers in [0, 1]: (N, 3, 32, 32)."""
        return self.pixels.float() / 255


def labels_of(scenes: shapes.Scenes) -> dict[str, Tensor]:
    """Return the labels (N,) of the main object: TASKS, and `style`.

    The sizes are thirds of the range of radii. The position is where the centre lies in the room that the
    object has: a large object in the top left corner has its centre farther inside than a small one.
    """
    order = torch.tensor([SHAPES.index(name) for name in shapes.SHAPES], device=scenes.device)
    share = scenes.radius[:, 0] / scenes.size
    low, high = RADIUS[0]
    room = (scenes.centre[:, 0] / scenes.size - share[:, None]) / (1 - 2 * share[:, None])
    column, row = (3 * room).long().clamp(0, 2).unbind(1)
    return dict(
        shape=order[scenes.shape[:, 0]],
        colour=scenes.colour[:, 0],
        texture=scenes.texture[:, 0],
        size=(3 * (share - low) / (high - low)).long().clamp(0, 2),
        position=3 * row + column,
        style=scenes.style,
    )


def pictures(
    n: int,
    style: str | Mapping[str, float] = "flat",
    *,
    only: Sequence[tuple[str, str]] | None = None,
    exclude: Sequence[tuple[str, str]] = HELD_OUT,
    zipf: float = 1.0,
    generator: torch.Generator,
) -> Pictures:
    """Draw `n` pictures without captions, on the generator's device.

    Args:
        style: one of `shapes.STYLES`, or the share of each.
        only: show these (colour, shape) alone, in equal shares; `exclude`: never these.
        zipf: how many times more frequent the first of SHAPES is than the last (the k-th has k^-a).
    """
    slope = torch.tensor(zipf).log() / torch.tensor(float(len(SHAPES))).log()
    frequencies = [(k + 1) ** -slope.item() for k in range(len(SHAPES))]
    scenes = shapes.sample(
        n, objects=2, size=SIZE, style=style, shapes=SHAPES, frequencies=frequencies, radius=RADIUS,
        exclude=() if only else exclude, generator=generator, device=generator.device,
    )  # fmt: skip
    if only:
        turn = torch.arange(n, device=generator.device) % len(only)
        colour = torch.tensor([COLOURS.index(c) for c, _ in only], device=turn.device)[turn]
        shape = torch.tensor([shapes.SHAPES.index(s) for _, s in only], device=turn.device)[turn]
        scenes.colour[:, 0], scenes.shape[:, 0] = colour, shape
    second = torch.rand(n, generator=generator, device=generator.device) < COMPANY
    valid = torch.stack([torch.ones_like(second), second], 1)
    # The main object is in front.
    depth = torch.tensor([0.2, 0.8], device=second.device).expand(n, 2)
    scenes = replace(scenes, valid=valid, depth=depth)
    step = 4096  # scenes at once, so that the floats of all of them never exist together
    parts = [shapes.render(scenes[i : i + step]).mul(255).round().byte() for i in range(0, n, step)]
    return Pictures(torch.cat(parts), labels_of(scenes))


def pairs(
    n: int,
    *,
    style: Mapping[str, float] | None = None,
    zipf: float = ZIPF,
    miscalled: float = 0.0,
    generator: torch.Generator,
) -> Pictures:
    """Draw `n` pictures with captions: styles mixed, shapes by Zipf's law, 8 % swapped.

    `miscalled` is that of `captions`; the stored model was trained on the usual pairs, then on PHOTOGRAPHS.
    """
    drawn = pictures(n, style or STYLE_SHARES, zipf=zipf, generator=generator)
    seed = torch.randint(2**62, (1,), generator=generator, device=generator.device)
    cpu = torch.Generator().manual_seed(seed.item())  # words are drawn on the CPU
    written = captions(drawn.labels, miscalled=miscalled, generator=cpu)
    swapped = torch.rand(n, generator=cpu) < SWAPPED
    rows = swapped.nonzero().flatten().tolist()
    for row, text in zip(rows, [written[k] for k in rows[1:] + rows[:1]], strict=True):
        written[row] = text
    device = generator.device
    return replace(
        drawn, captions=written, tokens=tokenize(written).to(device), swapped=swapped.to(device)
    )


# The towers


def quick_gelu(x: Tensor) -> Tensor:
    """x * sigmoid(1.702 x), as in CLIP."""
    return F.silu(1.702 * x) / 1.702


class Attention(nn.Module):
    """Multi-head self-attention with a matrix of its own for q, k, v and out (for LoRA)."""

    def __init__(self, width: int, heads: int, causal: bool):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        """Let the tokens x (B, L, width) look at each other; causal: only at those before them."""
        parts = (
            layer(x).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q, self.k, self.v)
        )
        mixed = F.scaled_dot_product_attention(*parts, is_causal=self.causal)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A transformer block that normalises before attention and before its MLP."""

    def __init__(self, width: int, heads: int, causal: bool):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, heads, causal)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Add what the tokens x (B, L, width) learn from each other, then from themselves."""
        x = x + self.attention(self.norm1(x))
        return x + self.down(quick_gelu(self.up(self.norm2(x))))


def _blocks(count: int, width: int, heads: int, causal: bool) -> nn.ModuleList:
    """Build blocks with CLIP's initial weights."""
    blocks = nn.ModuleList(Block(width, heads, causal) for _ in range(count))
    for block in blocks:
        attention = block.attention
        for layer in (attention.q, attention.k, attention.v):
            nn.init.normal_(layer.weight, std=width**-0.5)
        for layer in (attention.out, block.down):
            nn.init.normal_(layer.weight, std=(width * 2 * count) ** -0.5)
        nn.init.normal_(block.up.weight, std=(2 * width) ** -0.5)
        for layer in (attention.q, attention.k, attention.v, attention.out, block.up, block.down):
            nn.init.zeros_(layer.bias)
    return blocks


class ImageTower(nn.Module):
    """Three convolutions make 16 patches of a 32-pixel picture; three blocks and a class token read them."""

    def __init__(self, width: int = 96, heads: int = 4, layers: int = 3, dim: int = DIM):
        super().__init__()
        steps = (3, width // 4, width // 2, width)
        for k in (1, 2, 3):
            conv = nn.Conv2d(steps[k - 1], steps[k], 3, stride=2, padding=1, bias=False)
            setattr(self, f"conv{k}", conv.to(memory_format=torch.channels_last))
            setattr(self, f"group_norm{k}", nn.GroupNorm(steps[k] // 12, steps[k]))
        self.class_token = nn.Parameter(torch.randn(width) * width**-0.5)
        self.positions = nn.Parameter(torch.randn(1 + (SIZE // 8) ** 2, width) * width**-0.5)
        self.norm_in, self.norm_out = nn.LayerNorm(width), nn.LayerNorm(width)
        self.blocks = _blocks(layers, width, heads, causal=False)
        self.projection = nn.Linear(width, dim, bias=False)
        nn.init.normal_(self.projection.weight, std=width**-0.5)

    def patches(self, x: Tensor) -> Tensor:
        """Cut pictures x (B, 3, 32, 32) in [0, 1] into patch tokens (B, 16, width)."""
        if x.shape[1:] != (3, SIZE, SIZE):
            raise UsageError(
                f"the miniature CLIP sees (B, 3, {SIZE}, {SIZE}), not {tuple(x.shape)}"
            )
        x = (4 * x - 2).contiguous(memory_format=torch.channels_last)
        for k in (1, 2, 3):
            x = F.gelu(
                getattr(self, f"group_norm{k}")(getattr(self, f"conv{k}")(x)), approximate="tanh"
            )
        return x.flatten(2).transpose(1, 2)

    def forward(
        self, x: Tensor, prompts: Tensor | Sequence[Tensor] | None = None, patches: bool = False
    ):
        """Embed pictures x (B, 3, 32, 32) in [0, 1]: (B, d), not normalised.

        Args:
            prompts: learned tokens (P, width) or (B, P, width) that stand after the class token; a list
                gives one for each block, where each replaces the one before ("deep" prompts).
            patches: return the last layer's patch tokens (B, 16, width) as well.
        """
        tokens = self.patches(x)
        tokens = torch.cat([self.class_token.expand(len(x), 1, -1), tokens], 1) + self.positions
        tokens = self.norm_in(tokens)
        layers = [prompts] if prompts is None or isinstance(prompts, Tensor) else list(prompts)
        extra = 0
        for block, prompt in zip(self.blocks, layers + [None] * len(self.blocks), strict=False):
            if prompt is not None:
                prompt = prompt.expand(len(x), -1, -1)
                tokens = torch.cat([tokens[:, :1], prompt, tokens[:, 1 + extra :]], 1)
                extra = prompt.shape[1]
            tokens = block(tokens)
        tokens = self.norm_out(tokens)
        out = self.projection(tokens[:, 0])
        return (out, tokens[:, 1 + extra :]) if patches else out


class TextTower(nn.Module):
    """A causal transformer; a text is what its last token, the end of text, has read."""

    def __init__(
        self, words: int, width: int = 64, heads: int = 4, layers: int = 2, dim: int = DIM
    ):
        super().__init__()
        self.token_embedding = nn.Embedding(words, width)
        self.positions = nn.Parameter(torch.randn(CONTEXT, width) * 0.01)
        nn.init.normal_(self.token_embedding.weight, std=0.02)
        self.blocks = _blocks(layers, width, heads, causal=True)
        self.norm_out = nn.LayerNorm(width)
        self.projection = nn.Linear(width, dim, bias=False)
        nn.init.normal_(self.projection.weight, std=width**-0.5)

    def forward(self, embeddings: Tensor, end: Tensor) -> Tensor:
        """Embed texts from their tokens' embeddings (B, L, width), read at `end` (B,): (B, d), not normalised."""
        x = embeddings + self.positions[: embeddings.shape[1]]
        for block in self.blocks:
            x = block(x)
        rows = torch.arange(len(x), device=x.device)
        return self.projection(self.norm_out(x[rows, end]))


class MiniCLIP(nn.Module):
    """The two towers and the logarithm s of the temperature's inverse (`logit_scale`, as in CLIP)."""

    size = SIZE

    def __init__(self):
        super().__init__()
        self.image, self.text = ImageTower(), TextTower(len(VOCABULARY))
        self.logit_scale = nn.Parameter(torch.tensor(1 / 0.07).log())

    def encode_image(self, x: Tensor, **options) -> Tensor:
        """Embed pictures (B, 3, 32, 32) in [0, 1]: (B, d), not normalised; options as in ImageTower."""
        return self.image(x, **options)

    def encode_text(self, texts: Tensor | Sequence[str]) -> Tensor:
        """Embed texts, or token ids (B, L): (B, d), not normalised."""
        return self.encode_text_embeddings(*self.token_embeddings(texts))

    def encode_text_embeddings(self, embeddings: Tensor, end: Tensor) -> Tensor:
        """Embed texts from embeddings of their tokens (B, L, 64), such as learned prompts; `end` (B,)."""
        return self.text(embeddings, end)

    def token_embeddings(self, texts: Tensor | Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the embeddings of the tokens of texts or ids (B, L, 64), and where each text ends (B,)."""
        ids = texts if isinstance(texts, Tensor) else tokenize(texts).to(self.logit_scale.device)
        end = ends(ids)
        # No token looks ahead, so nothing changes if the padding behind the longest text is cut off.
        return self.text.token_embedding(ids[:, : int(end.max()) + 1]), end


# Reading and writing


def save(model: MiniCLIP, path: Path, facts: Mapping) -> None:
    """Write the weights (safetensors) and, beside them, a JSON with vocabulary, templates, classes and `facts`."""
    from safetensors.torch import save_file

    from lefcourse.files import write_json

    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}, path)
    known = dict(vocabulary=VOCABULARY, templates=NEUTRAL, styled_templates=STYLED, classes=TASKS)
    drawn = dict(style_shares=STYLE_SHARES, zipf=ZIPF, held_out=HELD_OUT)
    drawn |= dict(photographs=PHOTOGRAPHS, look_alikes=LOOK_ALIKES)
    write_json(path.with_suffix(".json"), known | drawn | dict(facts))


def facts(path: Path = CHECKPOINT) -> dict:
    """Return what the JSON beside a checkpoint says: vocabulary, templates, classes, seed, measured numbers."""
    try:
        return json.loads(_present(path.with_suffix(".json")).read_text())
    except ValueError as problem:
        raise DataError(_damaged(path.with_suffix(".json"), problem)) from None


def read(path: Path = CHECKPOINT, device: str | torch.device = "cpu") -> MiniCLIP:
    """Read a miniature CLIP; every parameter must be there, and no other, and the vocabulary must be ours."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if tuple(facts(path)["vocabulary"]) != VOCABULARY:
        raise DataError(
            f"{path} was made with another vocabulary: run `lefcourse run clip -p stage ship -p seed 0`"
        )
    model = MiniCLIP()
    stored = _present(path)
    try:
        model.load_state_dict(load_file(stored), strict=True)
    except (SafetensorError, RuntimeError, OSError) as problem:
        raise DataError(_damaged(path, problem)) from None
    return model.to(device).eval()


def _damaged(path: Path, problem: Exception) -> str:
    first = " ".join(str(problem).split())[:200]
    return f"{path} is broken ({first}): make it by `lefcourse run clip -p stage ship -p seed 0`"


def _present(path: Path) -> Path:
    if not path.exists():
        raise DataError(
            f"{path} is absent: make it by `lefcourse run clip -p stage ship -p seed 0`"
        )
    return path


def load(name: str = "mini", device: str | torch.device = "cpu") -> nn.Module:
    """Load a CLIP by name, in evaluation mode.

    Args:
        name: `mini` (comes with the course), `open_clip:ARCHITECTURE/WEIGHTS` (such as
            `open_clip:ViT-B-32/laion2b_s34b_b79k`) or `hf:OWNER/MODEL` (such as
            `hf:openai/clip-vit-base-patch32`); the last two need the package `open_clip_torch` or
            `transformers`, and weights that are in its cache or can be downloaded.

    All have encode_image (pictures in [0, 1]), encode_text (texts or ids), encode_text_embeddings,
    token_embeddings and logit_scale (a logarithm). Features are not normalised.
    Raises UsageError for another name, DataError if package or weights cannot be had.
    """
    kind, _, which = name.partition(":")
    if name == "mini":
        return read(device=device)
    if kind == "open_clip" and which.count("/") == 1:
        return _open_clip(*which.split("/")).to(device).eval()
    if kind == "hf" and which:
        return _transformers(which).to(device).eval()
    raise UsageError(
        f"unknown CLIP {name!r}: choices: mini, open_clip:ARCHITECTURE/WEIGHTS, hf:OWNER/MODEL"
    )


class RealCLIP(nn.Module):
    """A published CLIP behind the calls of `MiniCLIP`."""

    # What OpenAI normalised pictures by; the models that load() names took it over.
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)

    def __init__(self, model, image_features, text_features, token_embedding, tokenizer, size: int):
        super().__init__()
        self.model, self.size, self.logit_scale = model, size, model.logit_scale
        # Parts of `model`: kept in a tuple, so that their parameters are not registered twice.
        self._calls: tuple[Callable, Callable, nn.Module, Callable] = (
            image_features, text_features, token_embedding, tokenizer,
        )  # fmt: skip

    def encode_image(self, x: Tensor) -> Tensor:
        """Embed pictures (B, 3, H, W) in [0, 1], resized to the model's size: (B, d), not normalised."""
        x = F.interpolate(
            x, (self.size, self.size), mode="bicubic", antialias=True, align_corners=False
        )
        mean, std = (torch.tensor(v, device=x.device).view(3, 1, 1) for v in (self.mean, self.std))
        return self._calls[0]((x.clamp(0, 1) - mean) / std)

    def _ids(self, texts: Tensor | Sequence[str]) -> Tensor:
        ids = texts if isinstance(texts, Tensor) else self._calls[3](list(texts))
        return ids.to(self.logit_scale.device)

    def encode_text(self, texts: Tensor | Sequence[str]) -> Tensor:
        """Embed texts, or token ids (B, L): (B, d), not normalised."""
        return self._calls[1](self._ids(texts))

    def token_embeddings(self, texts: Tensor | Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return the embeddings of the tokens of texts or ids (B, L, width), and where each text ends (B,)."""
        ids = self._ids(texts)
        return self._calls[2](ids), ends(ids)

    def encode_text_embeddings(self, embeddings: Tensor, end: Tensor) -> Tensor:
        """Embed texts from embeddings of their tokens (B, L, width), such as learned prompts; `end` (B,)."""
        # The model runs as it is, on texts of the right length; its lookup of embeddings is answered by ours.
        ids = torch.zeros(embeddings.shape[:2], dtype=torch.long, device=embeddings.device)
        ids[torch.arange(len(ids), device=ids.device), end] = self._calls[2].num_embeddings - 1
        hook = self._calls[2].register_forward_hook(lambda module, inputs, output: embeddings)
        try:
            return self._calls[1](ids)
        finally:
            hook.remove()


def _open_clip(architecture: str, weights: str) -> RealCLIP:
    name = f"open_clip:{architecture}/{weights}"
    package = _package("open_clip", "open_clip_torch", name)
    try:
        model = package.create_model(architecture, pretrained=weights)
    except Exception as reason:  # names, network, broken files: each has a class of its own
        raise DataError(_no_weights(name, reason)) from reason
    size = model.visual.image_size
    return RealCLIP(
        model, model.encode_image, model.encode_text, model.token_embedding,
        package.get_tokenizer(architecture), size[0] if isinstance(size, tuple | list) else size,
    )  # fmt: skip


def _transformers(name: str) -> RealCLIP:
    package = _package("transformers", "transformers", f"hf:{name}")
    try:
        model = package.CLIPModel.from_pretrained(name)
        words = package.CLIPTokenizerFast.from_pretrained(name)
    except Exception as reason:
        raise DataError(_no_weights(f"hf:{name}", reason)) from reason

    def tokenizer(texts: list[str]) -> Tensor:
        # The padding must not be the end of text, which is found as the largest id.
        return words(texts, padding="max_length", max_length=77, truncation=True, return_tensors="pt")["input_ids"]  # fmt: skip

    def tensor(output) -> Tensor:  # since version 5 the features come in an object
        return output if isinstance(output, Tensor) else output.pooler_output

    return RealCLIP(
        model,
        lambda x: tensor(model.get_image_features(pixel_values=x)),
        lambda ids: tensor(model.get_text_features(input_ids=ids)),
        model.text_model.embeddings.token_embedding,
        tokenizer,
        model.config.vision_config.image_size,
    )


def _package(module: str, distribution: str, name: str):
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as reason:
        raise DataError(
            f"{name} needs the package {distribution}: pip install {distribution}"
        ) from reason


def _no_weights(name: str, reason: Exception) -> str:
    first = str(reason).strip().splitlines()[:1] or [type(reason).__name__]
    return f"{name} cannot be had: {first[0]} (its weights must be in the package's cache, or there must be a network and such a model)"
