"""CLIP's loss, classifier and training against slow definitions; and the stored model against its command.

Sources: paper, sections 2.3 and 3.1 and figure 3; authors' model.py and prompt notebook.
"""

import math
import os
import shutil
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from exercise_checks import assert_named, each

import lefcourse as lc
from lefcourse import catalogue
from lefcourse.chapter import params
from lefcourse.running import runner
from lefcourse.running.run import Run
from lefcourse.science import miniclip
from lefcourse.science.worlds import shapes

clip = lc.methods("clip")
N, D = 6, 5


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def features(seed=0, n=N):
    return torch.randn(n, D, generator=rng(seed), dtype=torch.float64)


S = torch.tensor(math.log(7.0), dtype=torch.float64)


# --- the loss ------------------------------------------------------------------------------------


def test_similarities_are_scaled_cosines():
    I_e, T_e = features(0), features(1, n=4)
    z = clip.similarities(I_e, T_e, S)
    for i in range(N):
        for j in range(4):
            cosine = I_e[i] @ T_e[j] / (I_e[i].norm() * T_e[j].norm())
            assert z[i, j].item() == pytest.approx(7 * cosine.item())


def test_only_directions_count():
    I_e, T_e = features(0), features(1)
    stretched = I_e.clone()
    stretched[2] *= 3
    assert torch.allclose(clip.similarities(stretched, T_e, S), clip.similarities(I_e, T_e, S))


def brute_force(z):
    """Pair by pair, in both directions."""
    n, total = len(z), 0.0
    for k in range(n):
        row, column = (torch.exp(v).sum().item() for v in (z[k], z[:, k]))
        total -= math.log(math.exp(z[k, k]) / row) + math.log(math.exp(z[k, k]) / column)
    return total / (2 * n)


def test_the_loss_is_its_definition_and_symmetric():
    I_e, T_e = features(0), features(1)
    z = clip.similarities(I_e, T_e, S)
    loss = clip.clip_loss(z)
    assert loss.item() == pytest.approx(brute_force(z))
    assert torch.allclose(clip.clip_loss(clip.similarities(T_e, I_e, S)), loss)
    order = torch.randperm(N, generator=rng(3))
    assert torch.allclose(clip.clip_loss(clip.similarities(I_e[order], T_e[order], S)), loss)
    assert not torch.allclose(clip.clip_loss(clip.similarities(I_e[order], T_e, S)), loss)


def test_knowing_nothing_costs_log_n():
    assert clip.clip_loss(torch.full((N, N), 3.0)).item() == pytest.approx(math.log(N))


@pytest.mark.parametrize("m", [1, 2, 3])
def test_equal_captions_cannot_be_told_apart(m):
    """If every caption occurs m times, gradient descent on free features ends at log m and never below."""
    kinds = torch.arange(N) // m
    I_e, T_k = features(0).requires_grad_(), features(1).requires_grad_()
    optimizer = torch.optim.Adam([I_e, T_k], 0.2)
    s, lowest = torch.tensor(math.log(100.0)), math.inf
    for _ in range(150):
        loss = clip.clip_loss(clip.similarities(I_e, T_k[kinds], s))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        lowest = min(lowest, loss.item())
    assert math.log(m) - 1e-9 <= lowest < math.log(m) + 0.02


def test_gradients_of_each_direction_sum_to_zero():
    z = clip.similarities(features(0), features(1), S).detach().requires_grad_()
    own = torch.arange(N)
    (rows,) = torch.autograd.grad(F.cross_entropy(z, own), z)
    (columns,) = torch.autograd.grad(F.cross_entropy(z.T, own), z)
    assert torch.allclose(rows.sum(1), torch.zeros(N, dtype=z.dtype), atol=1e-12)
    assert torch.allclose(columns.sum(0), torch.zeros(N, dtype=z.dtype), atol=1e-12)
    (both,) = torch.autograd.grad(clip.clip_loss(z), z)
    assert torch.allclose(both, (rows + columns) / 2)


# --- training ------------------------------------------------------------------------------------


def test_weight_decay_spares_gains_biases_and_the_temperature():
    model = miniclip.MiniCLIP()
    matrices, others = clip.optimiser(model, 1e-3, 0.1).param_groups
    assert (matrices["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert matrices["betas"] == (0.9, 0.98) and matrices["eps"] == 1e-6
    spared = {id(p) for p in others["params"]}
    for name, p in model.named_parameters():
        decayed = p.ndim >= 2
        assert (id(p) in spared) != decayed, name
    assert id(model.logit_scale) in spared
    assert len(matrices["params"]) + len(others["params"]) == len(list(model.parameters()))


def test_the_rate_warms_up_and_falls_by_half_a_cosine():
    rates = [clip.rate(t, 4, 20) for t in range(20)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0] and rates[4] == 1.0
    assert rates[12] == pytest.approx(0.5) and 0 < rates[19] < 0.02
    assert all(a >= b for a, b in pairwise(rates[4:]))


@pytest.fixture(scope="module")
def web():
    return miniclip.pairs(64, generator=rng())


def trained(web, steps=2, **change):
    torch.manual_seed(1)
    model = miniclip.MiniCLIP()
    settings = dict(steps=steps, batch=16, lr=1e-3, warmup=1, generator=rng(2)) | change
    return model, clip.train_clip(model, web.pixels, web.tokens, **settings)


def test_training_is_drawn_from_its_generator(web):
    (a, losses), (b, again) = trained(web), trained(web)
    assert losses == again and len(losses) == 2
    assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))
    assert trained(web, generator=rng(3))[1] != losses
    assert losses[0] == pytest.approx(math.log(16), abs=0.8)


def test_one_step_is_adamw_on_the_loss(web):
    """The first step by hand: same batch, no crop, the same optimiser."""
    one, (loss,) = trained(web, steps=1, shift=0, warmup=0)
    torch.manual_seed(1)
    other = miniclip.MiniCLIP()
    draws = rng(2)
    (index,) = lc.batches(64, 16, draws, steps=1)
    z = clip.similarities(
        other.encode_image(web.pixels[index] / 255),
        other.encode_text([web.captions[k] for k in index]),
        other.logit_scale,
    )
    wanted = clip.clip_loss(z)
    assert loss == pytest.approx(wanted.item(), abs=1e-5)
    optimizer = clip.optimiser(other, 1e-3, 0.1)
    wanted.backward()
    optimizer.step()
    for (name, p), q in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-5), name


def test_the_temperature_is_learned_bounded_or_fixed(web):
    assert trained(web)[0].logit_scale.exp().item() != pytest.approx(1 / 0.07, abs=1e-6)
    fixed = trained(web, temperature=1.0)[0].logit_scale
    assert fixed.item() == 0 and not fixed.requires_grad

    def hot(step, model):
        assert model.logit_scale.exp().item() <= 100.001  # Table 18, maximum temperature
        model.logit_scale.data.fill_(9.0)

    trained(web, each=hot)


def test_both_towers_learn(web):
    model, _ = trained(web)
    torch.manual_seed(1)
    for (name, p), q in zip(
        model.named_parameters(), miniclip.MiniCLIP().parameters(), strict=True
    ):
        if not name.endswith(("q.bias", "k.bias")):
            assert not torch.equal(p, q), name


def test_no_picture_is_mirrored(web, monkeypatch):
    """The only change is a shift by at most two pixels: left must stay left."""
    seen = []
    original = miniclip.MiniCLIP.encode_image
    monkeypatch.setattr(
        miniclip.MiniCLIP,
        "encode_image",
        lambda self, x, **kw: seen.append(x) or original(self, x, **kw),
    )
    trained(web, steps=1, warmup=0)
    (index,) = lc.batches(64, 16, rng(2), steps=1)
    padded = F.pad(web.pixels[index].float() / 255, (2, 2, 2, 2))
    for x, wide in zip(seen[0], padded, strict=True):
        windows = [wide[:, i : i + 32, j : j + 32] for i in range(5) for j in range(5)]
        middle = slice(4, 28)  # what is padded, and how, does not concern us
        assert any(torch.equal(x[:, middle, middle], w[:, middle, middle]) for w in windows)


# --- sentences as weights ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mini():
    return miniclip.load()


def test_weights_are_directions_of_the_mean_of_directions(mini):
    templates, names = ["a picture of {}", "there is {}", "{}"], ["a star", "a red thing"]
    W = clip.zero_shot_weights(mini, names, templates)
    assert W.shape == (64, 2) and torch.allclose(W.norm(dim=0), torch.ones(2), atol=1e-6)
    for c, name in enumerate(names):
        units = []
        for t in templates:
            e = mini.encode_text([t.format(name)])[0]
            units.append(e / e.norm())
        mean = sum(units)
        assert torch.allclose(W[:, c], mean / mean.norm(), atol=1e-5)


def test_copies_of_one_template_are_that_template(mini):
    one = clip.zero_shot_weights(mini, ["a star", "a ring"], ["a picture of {}"])
    three = clip.zero_shot_weights(mini, ["a star", "a ring"], ["a picture of {}"] * 3)
    assert torch.allclose(one, three, atol=1e-6)


def test_long_vectors_do_not_outvote_short_ones():
    class Shout:
        """Embeds a loud sentence as a long vector."""

        def encode_text(self, texts):
            return torch.tensor([[9.0, 0.0] if "!" in t else [0.0, 1.0] for t in texts])

    W = clip.zero_shot_weights(Shout(), ["a star"], ["{}", "{}!"])
    assert torch.allclose(W[:, 0], torch.full((2,), 0.5**0.5))


def test_features_are_unit_and_do_not_depend_on_the_batch(mini):
    x = torch.rand(7, 3, 32, 32, generator=rng())
    whole, parts = clip.picture_features(mini, x), clip.picture_features(mini, x, size=3)
    assert torch.allclose(whole.norm(dim=1), torch.ones(7)) and torch.allclose(
        whole, parts, atol=1e-5
    )
    assert torch.allclose(whole, F.normalize(mini.encode_image(x), dim=1), atol=1e-5)


def test_every_task_has_a_classifier(mini):
    for task, words in miniclip.TASKS.items():
        assert clip.task_weights(mini, task).shape == (64, len(words))


def test_recalls():
    I_e, T_e = torch.eye(4), torch.eye(4)[[0, 1, 3, 2]]
    assert clip.recall_at_1(I_e, T_e) == 0.5 and clip.recall_at_1(I_e, I_e) == 1.0
    recall = clip.recall_by_class(torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 1, 1]), 2)
    assert torch.allclose(recall, torch.tensor([1.0, 2 / 3]))


# --- the stored model ----------------------------------------------------------------------------


def test_the_stored_model_is_small_and_says_where_it_is_from():
    assert miniclip.CHECKPOINT.stat().st_size < 4_000_000
    known = miniclip.facts()
    said = {"vocabulary", "templates", "classes", "seed", "recipe", "second", "pairs", "measured"}
    assert said <= set(known)
    assert known["zipf"] == miniclip.ZIPF and known["style_shares"] == miniclip.STYLE_SHARES
    assert known["photographs"] == miniclip.PHOTOGRAPHS
    assert known["look_alikes"] == miniclip.LOOK_ALIKES
    assert known["classes"] == {task: list(words) for task, words in miniclip.TASKS.items()}


BANDS = {  # the specification of the stored model: least and largest value on pictures that no chapter trains on
    "flat shape": (0.85, 1.0),
    "real shape": (0.40, 0.70),
    "real worst recall": (0.0, 0.20),
    "real best recall": (0.85, 1.0),
    "real probe": (0.88, 1.0),
    "retrieval": (0.30, 1.0),
}
ROOM = 0.15  # what later chapters need between the sentences and the features on real pictures


@pytest.mark.parametrize("name", BANDS)
def test_the_stored_model_lies_in_its_band(name):
    low, high = BANDS[name]
    assert low <= miniclip.facts()["measured"][name] <= high


def test_the_stored_model_is_as_good_as_it_says(mini):
    """Measured anew on pictures of another seed; two standard errors and a little on 160, fewer labels for the probe."""
    said, card = miniclip.facts()["measured"], clip.report_card(mini, n=160, seed=77)
    for name, value in card.items():
        # A recall is that of some ten pictures; the probe has a twelfth of the labels.
        slack = 0.25 if "recall" in name else 0.15 if "probe" in name else 0.09
        assert value == pytest.approx(said[name], abs=slack), name
    assert said["real probe"] - said["real shape"] >= ROOM
    assert card["real probe"] - card["real shape"] >= ROOM - 0.05, "with a twelfth of the labels"


def test_look_alikes_are_called_by_the_commoner_name_in_real_pictures_alone():
    rank = {name: k for k, name in enumerate(miniclip.SHAPES)}
    assert all(rank[rare] > rank[common] for rare, common in miniclip.LOOK_ALIKES.items())
    assert not set(miniclip.LOOK_ALIKES) & set(miniclip.LOOK_ALIKES.values())
    n, shape = 400, miniclip.SHAPES.index("hexagon")
    labels = dict.fromkeys(
        ("colour", "texture", "size", "position"), torch.zeros(n, dtype=torch.long)
    )
    labels |= dict(shape=torch.full((n,), shape), style=torch.arange(n) % 4)
    real = (labels["style"] == shapes.STYLES.index("real")).tolist()
    for share in (0.0, 0.75, 1.0):
        told = miniclip.captions(labels, miscalled=share, generator=rng(4))
        assert told == miniclip.captions(labels, miscalled=share, generator=rng(4))
        called = [("circle" in t or "disc" in t, "hexagon" in t) for t in told]
        assert not any(wrong for (wrong, _), r in zip(called, real, strict=True) if not r)
        wrong = sum(w for w, _ in called) / max(
            1, sum(w or h for (w, h), r in zip(called, real, strict=True) if r)
        )
        assert wrong == pytest.approx(share, abs=0.15)


@pytest.mark.skipif("LEFCOURSE_SLOW" not in os.environ, reason="a minute: set LEFCOURSE_SLOW=1")
def test_the_stored_model_begins_as_its_command_begins(monkeypatch):
    """With the command's pairs, weights and batches the first losses are those that were stored."""
    known, losses = miniclip.facts(), []
    run = SimpleNamespace(seed=known["seed"], device="cpu")
    web = miniclip.pairs(known["pairs"], generator=Run.generator(run, "pairs"))
    Run.fresh(run, "weights")
    model, original = miniclip.MiniCLIP(), clip.clip_loss

    class Enough(Exception):
        pass

    def each(step, model):
        if step == len(known["first_losses"]):
            raise Enough

    def spy(z):
        losses.append(original(z))
        return losses[-1]

    monkeypatch.setattr(clip, "clip_loss", spy)
    draws = Run.generator(run, "batches")
    with pytest.raises(Enough):
        clip.train_clip(
            model, web.pixels, web.tokens, generator=draws, each=each, **known["recipe"]
        )
    assert [v.item() for v in losses] == pytest.approx(known["first_losses"], abs=2e-3)
    assert losses[-1] < losses[0] - 0.3, "it learns"


@pytest.mark.skipif("LEFCOURSE_SLOW" not in os.environ, reason="half an hour: set LEFCOURSE_SLOW=1")
def test_the_command_makes_the_stored_model(tmp_path):
    """The whole command once more: every number within 0.03 (recalls 0.1) of the stored one."""
    files = [miniclip.CHECKPOINT, miniclip.CHECKPOINT.with_suffix(".json")]
    for file in files:
        shutil.copy(file, tmp_path)
    said = miniclip.facts()["measured"]
    try:
        record = runner.execute(catalogue.get("clip"), dict(stage="ship", seed=0), tmp_path / "run")
        assert record["status"] == "done", record.get("error")
        made = miniclip.facts()["measured"]
    finally:
        for file in files:
            shutil.copy(tmp_path / file.name, file)
    for name, value in made.items():
        assert value == pytest.approx(said[name], abs=0.1 if "recall" in name else 0.03), name


# --- the paper's setting, and the exercises -------------------------------------------------------

# Values of the paper that stand in the chapter, and where they are said.
PAPER = {
    "clip_model": (
        "open_clip:ViT-B-32-quickgelu/openai",
        "the authors' ViT-B/32 (openai/CLIP, clip.py)",
    ),
    "dataset": ("cifar10", "one of the 27 data sets of section 3.1.5"),
    "lr": (5e-4, "Table 20, ViT-B/32"),
    "weight_decay": (0.2, "Table 18"),
    "betas": ((0.9, 0.98), "Table 18, vision transformers"),
    "eps": (1e-6, "Table 18, vision transformers"),
    "first temperature": (0.07, "section 2.5; model.py, logit_scale"),
}


def test_the_papers_values_are_the_papers():
    full = params.presets(catalogue.get("clip").path)["full"]
    group = clip.optimiser(miniclip.MiniCLIP(), **clip.PAPER).param_groups[0]
    found = {name: full[name] for name in ("clip_model", "dataset")}
    found |= {name: group[name] for name in ("lr", "weight_decay", "betas", "eps")}
    found["first temperature"] = miniclip.MiniCLIP().logit_scale.neg().exp().item()
    for name, (value, source) in PAPER.items():
        wanted = pytest.approx(value) if isinstance(value, float) else value
        assert found[name] == wanted, (name, source)


def one_way(z, captions):
    twins = torch.tensor([[a == b for a in captions] for b in captions], dtype=z.dtype)
    return F.cross_entropy(z, twins / twins.sum(1, keepdim=True))


def undivided(z, captions):
    twins = torch.tensor([[a == b for a in captions] for b in captions], dtype=z.dtype)
    return (F.cross_entropy(z, twins) + F.cross_entropy(z.T, twins)) / 2


def dropped(z, captions):
    """Takes twins out of the denominator instead of sharing the target."""
    twins = torch.tensor([[a == b for a in captions] for b in captions])
    twins.fill_diagonal_(False)
    return clip.clip_loss(z.masked_fill(twins, -1e9))


WRONG = {
    "check_floor": [
        (lambda captions: math.log(len(captions)), "a perfect model reaches zero"),
        (lambda captions: math.log(max(captions.count(c) for c in captions)), "commonest caption"),
        (
            lambda captions: float(np.mean([math.log(captions.count(c)) for c in set(captions)])),
            "not over the different captions",
        ),
        (lambda captions: 0.0, "nothing beats log 5"),
    ],
    "check_multi": [
        (lambda z, captions: clip.clip_loss(z), "still negatives of each other"),
        (one_way, "the columns are missing"),
        (undivided, "must sum to one"),
        (dropped, "expected"),
    ],
    "check_stars": [
        (lambda: (["a star"], ["a star"]), "the same sentences"),
        (lambda: (["a poster"], ["a sketch"]), "keep the word"),
        (lambda: (["a sketch of a star"], ["a poster of a star"]), "wrong way round"),
        (lambda: (["a star"], ["a picture of a star"]), "which words did captions"),
    ],
}


@pytest.fixture(scope="module")
def stars(mini):
    """What the third check uses of the notebook: features and labels of flat and of sketched pictures."""
    drawn = {s: miniclip.pictures(120, s, generator=rng(8)) for s in ("flat", "sketch")}
    return dict(
        mini=mini,
        SHAPES=miniclip.SHAPES,
        right=lambda said, y: (said == y).float().mean().item(),
        test_I={s: clip.picture_features(mini, p.images) for s, p in drawn.items()},
        test_y={s: p.labels for s, p in drawn.items()},
    )


@each(WRONG)
def test_typical_wrong_answers_are_named(name, k, stars):
    assert_named("clip", WRONG, name, k, **stars)
