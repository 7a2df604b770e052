"""The miniature CLIP: captions that are true but for the swapped, a tokenizer that answers, towers that keep their word."""

import sys
import types

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lefcourse.errors import DataError, UsageError
from lefcourse.science import miniclip as M
from lefcourse.science.worlds import shapes


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def pairs():
    return M.pairs(3000, generator=generator())


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return M.MiniCLIP().eval()


# Captions


def test_pairs_are_drawn_from_their_generator(pairs):
    again, other = M.pairs(3000, generator=generator()), M.pairs(3000, generator=generator(1))
    assert torch.equal(again.pixels, pairs.pixels) and again.captions == pairs.captions
    assert not torch.equal(other.pixels, pairs.pixels) and other.captions != pairs.captions
    assert pairs.pixels.shape == (3000, 3, 32, 32) and pairs.pixels.dtype == torch.uint8


def named(caption, words):
    """The only one of `words` in the caption, or None."""
    found = [w for w in words if w in caption.split()]
    assert len(found) <= 1, caption
    return found[0] if found else None


def test_captions_say_what_is_true_unless_they_are_swapped(pairs):
    back = {v: k for k, v in M.SYNONYMS.items()}
    lies = 0
    for k, caption in enumerate(pairs.captions):
        wrong = False
        for task in ("colour", "texture", "size"):
            said = named(caption, M.TASKS[task])
            wrong |= said is not None and M.TASKS[task].index(said) != pairs.labels[task][k]
        said = named(caption, [*M.SHAPES, *back])
        wrong |= (
            said is not None and M.SHAPES.index(back.get(said, said)) != pairs.labels["shape"][k]
        )
        assert not wrong or pairs.swapped[k], caption
        lies += wrong
    assert pairs.swapped.float().mean() == pytest.approx(M.SWAPPED, abs=0.015)
    assert lies > 0.5 * pairs.swapped.sum()


def test_captions_leave_out_what_they_should(pairs):
    share = lambda words: sum(bool(named(c, words)) for c in pairs.captions) / 3000  # noqa: E731
    assert share([*M.SHAPES, *M.SYNONYMS.values()]) == pytest.approx(0.7, abs=0.03)
    assert share(M.COLOURS) == pytest.approx(0.6, abs=0.03)
    assert share(M.TEXTURES) == pytest.approx(0.5, abs=0.03)
    assert share(M.SIZES) == pytest.approx(0.4, abs=0.03)
    places = sum(
        any(w in c.split() for w in ("left", "right", "top", "bottom", "middle"))
        for c in pairs.captions
    )
    assert places / 3000 == pytest.approx(0.5, abs=0.03)
    assert share(M.SYNONYMS.values()) == pytest.approx(0.07, abs=0.02)
    assert max(len(c.split()) for c in pairs.captions) <= 14


def test_shapes_follow_zipfs_law(pairs):
    counts = pairs.labels["shape"].bincount(minlength=16).float()
    slope = torch.tensor(M.ZIPF).log() / torch.tensor(16.0).log()
    expected = torch.arange(1, 17.0) ** -slope
    expected *= 3000 / expected.sum()
    assert expected[0] / expected[-1] == pytest.approx(M.ZIPF, rel=1e-4)
    assert ((counts - expected).abs() < 5 * expected.sqrt()).all()


def test_some_compositions_are_held_out(pairs):
    seen = {
        (M.COLOURS[c], M.SHAPES[s])
        for c, s in zip(pairs.labels["colour"], pairs.labels["shape"], strict=True)
    }
    assert not seen & set(M.HELD_OUT)
    only = M.pictures(60, only=M.HELD_OUT, generator=generator())
    seen = [
        (M.COLOURS[c], M.SHAPES[s])
        for c, s in zip(only.labels["colour"], only.labels["shape"], strict=True)
    ]
    assert seen == list(M.HELD_OUT) * 10


def test_a_full_caption_names_everything():
    labels = {"shape": 8, "colour": 1, "texture": 2, "size": 1, "position": 5, "style": 1}
    (caption,) = M.captions(
        {k: torch.tensor([v]) for k, v in labels.items()}, everything=True, generator=generator()
    )
    assert "a medium dotted orange arrow on the right" in caption


def test_position_and_size_are_those_of_the_picture():
    drawn = M.pictures(300, generator=generator(3))
    scenes = shapes.sample(
        300, objects=2, size=32, shapes=M.SHAPES, radius=M.RADIUS, exclude=M.HELD_OUT, generator=generator(3)
    )  # fmt: skip
    position, centre = drawn.labels["position"], scenes.centre[:, 0]
    left, right = position % 3 == 0, position % 3 == 2
    assert centre[left, 0].max() < 16 and centre[right, 0].min() > 16
    assert (centre[position == 0] < 16).all()
    radius = scenes.radius[:, 0]
    assert radius[drawn.labels["size"] == 0].max() < radius[drawn.labels["size"] == 2].min()


def test_the_longest_caption_can_be_read():
    nouns = [*M.SHAPES, *M.SYNONYMS.values(), *M.GROUPS.values(), *M.THINGS]
    what = "a " + " ".join(max(words, key=len) for words in (M.SIZES, M.TEXTURES, M.COLOURS, nouns))
    for template in [*M.NEUTRAL, *(t for group in M.STYLED.values() for t in group)]:
        M.tokenize(template.format(f"{what} {M.place('bottom right', corner=True)}"))
    assert all(" " not in noun for noun in nouns)


def test_phrases_are_sentences_the_model_can_read():
    for task, words in M.TASKS.items():
        for word in words:
            M.tokenize([t.format(M.phrase(task, word)) for t in M.NEUTRAL])
    assert M.phrase("shape", "arrow") == "an arrow" and M.phrase("colour", "red") == "a red thing"
    assert M.phrase("position", "left") == "a thing on the left"


# The tokenizer


def test_vocabulary():
    assert len(M.VOCABULARY) == len(set(M.VOCABULARY)) <= 300
    assert (0, 1, len(M.VOCABULARY) - 1) == (M.PAD, M.START, M.END)


def test_the_end_is_found_for_every_length():
    for words in range(15):
        tokens = M.tokenize([" ".join(["red"] * words)])
        assert tokens.shape == (1, 16) and tokens[0, 0] == M.START
        assert M.ends(tokens).item() == words + 1 and tokens[0, words + 1] == M.END
        assert (tokens[0, words + 2 :] == M.PAD).all()


def test_case_and_full_stops_do_not_matter():
    assert torch.equal(M.tokenize("A photo of a Star."), M.tokenize(["a photo of a star"]))


def test_an_unknown_word_is_an_error_with_near_spellings():
    with pytest.raises(UsageError, match="'triangel': did you mean 'triangle'"):
        M.tokenize("a triangel")
    with pytest.raises(UsageError, match="does not know the word '<pad>'"):
        M.tokenize("a <pad>")
    with pytest.raises(UsageError, match="15 words"):
        M.tokenize(" ".join(["red"] * 15))


# The towers


def test_size_and_names(model):
    count = {
        name: sum(p.numel() for p in tower.parameters()) for name, tower in model.named_children()
    }
    assert 380_000 < count["image"] < 420_000 and 100_000 < count["text"] < 130_000
    names = set(model.state_dict())
    for tower, layers in (("image", 3), ("text", 2)):
        for k in range(layers):
            for part in (
                "attention.q",
                "attention.k",
                "attention.v",
                "attention.out",
                "up",
                "down",
            ):
                assert f"{tower}.blocks.{k}.{part}.weight" in names
    assert {
        "logit_scale",
        "image.class_token",
        "text.token_embedding.weight",
        "image.projection.weight",
    } <= names
    assert "image.projection.bias" not in names and "text.projection.bias" not in names
    assert model.logit_scale.exp().item() == pytest.approx(1 / 0.07)


def test_what_follows_the_end_changes_nothing(model):
    texts = ["a red star", "there is a small striped heart on the left", ""]
    tokens = M.tokenize(texts)
    expected = model.encode_text(texts)
    changed = tokens.clone()
    for row, end in enumerate(M.ends(tokens).tolist()):
        changed[row, end + 1 :] = torch.arange(2, 17 - end)
    embeddings, end = model.text.token_embedding(changed), M.ends(tokens)
    assert torch.allclose(model.encode_text_embeddings(embeddings, end), expected, atol=1e-6)
    changed = tokens.clone()
    changed[0, 1] = M.tokenize("the")[0, 1]
    assert not torch.allclose(model.encode_text(changed)[0], expected[0], atol=1e-4)


def test_alone_or_among_longer_texts(model):
    alone = torch.cat(
        [model.encode_text([t]) for t in ("a star", "the picture shows a small blue ring")]
    )
    together = model.encode_text(["a star", "the picture shows a small blue ring"])
    assert torch.allclose(alone, together, atol=1e-6)


def test_attention_is_its_definition():
    torch.manual_seed(1)
    for causal in (False, True):
        layer = M.Attention(8, 2, causal).double()
        x = torch.randn(3, 5, 8, dtype=torch.float64)
        out = torch.zeros_like(x)
        q, k, v = layer.q(x), layer.k(x), layer.v(x)
        for b in range(3):
            for i in range(5):
                seen = i + 1 if causal else 5
                for head in (slice(0, 4), slice(4, 8)):
                    weights = F.softmax(k[b, :seen, head] @ q[b, i, head] / 2, dim=0)
                    out[b, i, head] = weights @ v[b, :seen, head]
        assert torch.allclose(layer(x), layer.out(out))


def test_quick_gelu():
    x = torch.linspace(-4, 4, 50, dtype=torch.float64)
    assert torch.allclose(M.quick_gelu(x), x * torch.sigmoid(1.702 * x))


def test_prompt_tokens_and_patch_tokens(model):
    x = torch.rand(2, 3, 32, 32, generator=generator())
    out, patches = model.encode_image(x, patches=True)
    assert out.shape == (2, 64) and patches.shape == (2, 16, 96)
    assert torch.equal(out, model.encode_image(x))
    prompt = torch.randn(5, 96, requires_grad=True)
    prompted, same = model.encode_image(x, prompts=prompt, patches=True)
    assert same.shape == (2, 16, 96) and not torch.allclose(prompted, out, atol=1e-4)
    prompted.sum().backward()
    assert prompt.grad.abs().sum() > 0
    model.zero_grad()
    each = model.encode_image(x, prompts=prompt.expand(2, -1, -1))
    assert torch.allclose(each, prompted, atol=1e-6)


def test_deep_prompts_replace_each_other(model):
    x, seen = torch.rand(2, 3, 32, 32, generator=generator()), []
    hooks = [
        b.register_forward_pre_hook(lambda m, args: seen.append(args[0]))
        for b in model.image.blocks
    ]
    prompts = [torch.full((4, 96), float(k)) for k in range(3)]
    model.encode_image(x, prompts=prompts)
    for hook in hooks:
        hook.remove()
    for tokens, prompt in zip(seen, prompts, strict=True):
        assert tokens.shape == (2, 21, 96) and torch.equal(tokens[:, 1:5], prompt.expand(2, -1, -1))


def test_pictures_of_another_size_are_refused(model):
    with pytest.raises(UsageError, match=r"sees \(B, 3, 32, 32\), not"):
        model.encode_image(torch.rand(1, 3, 28, 28))


def test_channels_last_or_not_is_the_same(model):
    x = torch.rand(4, 3, 32, 32, generator=generator())
    other = model.encode_image(x.to(memory_format=torch.channels_last))
    assert torch.allclose(model.encode_image(x), other, atol=1e-5)


# Reading and writing


def test_what_was_saved_is_read(model, tmp_path):
    path = tmp_path / "some.safetensors"
    M.save(model, path, {"seed": 3})
    again = M.read(path)
    assert not again.training and M.facts(path)["seed"] == 3
    for a, b in zip(model.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    assert path.stat().st_size < 4_000_000


def test_a_checkpoint_with_a_part_missing_is_refused(model, tmp_path):
    from safetensors.torch import save_file

    path = tmp_path / "some.safetensors"
    M.save(model, path, {})
    save_file(
        {k: v.contiguous() for k, v in model.state_dict().items() if k != "image.class_token"}, path
    )
    with pytest.raises(RuntimeError, match="class_token"):
        M.read(path)


@pytest.mark.parametrize(("file", "content"), [("some.json", b"{"), ("some.safetensors", b"half")])
def test_a_damaged_checkpoint_is_named(file, content, model, tmp_path):
    M.save(model, tmp_path / "some.safetensors", {})
    (tmp_path / file).write_bytes(content)
    with pytest.raises(DataError, match=f"{file} is broken .*lefcourse run clip"):
        M.read(tmp_path / "some.safetensors")


def test_absent_files_and_unknown_names(tmp_path):
    with pytest.raises(DataError, match="lefcourse run clip -p stage ship"):
        M.read(tmp_path / "no.safetensors")
    for name in ("maxi", "open_clip:ViT-B-32", "hf:"):
        with pytest.raises(UsageError, match="choices: mini, open_clip"):
            M.load(name)


# Real models, by stubs that have the two libraries' interfaces


class Inner(nn.Module):
    """A text encoder that sums what it has read up to the end, as both libraries' do in principle."""

    def __init__(self, words=50, width=6):
        super().__init__()
        self.token_embedding = nn.Embedding(words, width)
        self.logit_scale = nn.Parameter(torch.tensor(4.6))
        self.positions = nn.Parameter(torch.randn(10, width))
        self.visual = types.SimpleNamespace(image_size=(8, 8))
        self.seen = []

    def encode_image(self, x):
        self.seen.append(x)
        return x.flatten(1)[:, :6]

    def encode_text(self, ids):
        x = (self.token_embedding(ids) + self.positions).cumsum(1)
        return x[torch.arange(len(x)), ids.argmax(1)]


def to_ids(texts, length=10):
    rows = [[48, *(len(w) for w in t.split()), 49] for t in texts]
    return torch.tensor([row + [0] * (length - len(row)) for row in rows])


@pytest.fixture
def open_clip(monkeypatch):
    stub = types.ModuleType("open_clip")
    stub.inner = Inner()
    stub.create_model = lambda architecture, pretrained: stub.inner
    stub.get_tokenizer = lambda architecture: to_ids
    monkeypatch.setitem(sys.modules, "open_clip", stub)
    return stub


@pytest.fixture
def transformers(monkeypatch):
    stub = types.ModuleType("transformers")
    stub.inner = Inner()

    class CLIPModel(nn.Module):
        def __init__(self):
            super().__init__()
            inner = self.inner = stub.inner
            self.logit_scale = inner.logit_scale
            self.text_model = nn.Module()
            self.text_model.embeddings = nn.Module()
            self.text_model.embeddings.token_embedding = inner.token_embedding
            vision = types.SimpleNamespace(image_size=8)
            self.config = types.SimpleNamespace(vision_config=vision)

        def get_image_features(self, pixel_values):
            return self.inner.encode_image(pixel_values)

        def get_text_features(self, input_ids):  # the form of version 5
            return types.SimpleNamespace(pooler_output=self.inner.encode_text(input_ids))

        @classmethod
        def from_pretrained(cls, name):
            if name == "no/such":
                raise OSError("no/such is not a model\nand more")
            return cls()

    class CLIPTokenizerFast:
        @classmethod
        def from_pretrained(cls, name):
            return lambda texts, padding, max_length, truncation, return_tensors: {
                "input_ids": to_ids(texts)
            }

    stub.CLIPModel, stub.CLIPTokenizerFast = CLIPModel, CLIPTokenizerFast
    monkeypatch.setitem(sys.modules, "transformers", stub)
    return stub


@pytest.mark.parametrize(
    ("library", "name"),
    [
        ("open_clip", "open_clip:ViT-B-32/openai"),
        ("transformers", "hf:openai/clip-vit-base-patch32"),
    ],
)
def test_a_real_clip_has_the_same_calls(library, name, request):
    stub = request.getfixturevalue(library)
    model = M.load(name)
    texts = ["a photo of cats", "one"]
    expected = stub.inner.encode_text(to_ids(texts))
    assert torch.equal(model.encode_text(texts), expected)
    embeddings, end = model.token_embeddings(texts)
    assert end.tolist() == [5, 2]
    assert torch.allclose(model.encode_text_embeddings(embeddings, end), expected)
    learned = embeddings.detach().requires_grad_()
    model.encode_text_embeddings(learned, end).sum().backward()
    assert learned.grad[1, :3].abs().sum() > 0 and not learned.grad[1, 3:].any()
    assert torch.equal(model.encode_text(texts), expected), "the hook is gone"
    model.encode_image(torch.full((2, 3, 32, 32), 0.48145466))
    (x,) = stub.inner.seen
    assert x.shape == (2, 3, 8, 8) and x[:, 0].abs().max() < 1e-5
    assert model.logit_scale is stub.inner.logit_scale and not model.training


def test_a_real_clip_that_cannot_be_had(transformers, monkeypatch):
    with pytest.raises(DataError, match="hf:no/such cannot be had: no/such is not a model"):
        M.load("hf:no/such")
    monkeypatch.setitem(sys.modules, "open_clip", None)
    with pytest.raises(DataError, match="pip install open_clip_torch"):
        M.load("open_clip:ViT-B-32/openai")
