"""Heads that compete: what the minimum counts, who gets a gradient, and what the scores say.

Brief sources: paper, and the authors' MHNAFNet_arch.py, losses.py, multi_head_image_restoration_model.py and training options.
"""

import math

import pytest
import torch
from exercise_checks import assert_named, assert_papers, each, full_budget

import lefcourse as lc

md = lc.methods("multi-output-deblur")


def drawn(B=6, n=4, S=5, seed=0):
    """Blurry x (B, 1, S, S), residuals r (B, n, S, S) that want a gradient, and labels t (B, 1, S, S)."""
    g = torch.Generator().manual_seed(seed)
    x, r, t = (torch.rand(B, k, S, S, generator=g, dtype=torch.float64) for k in (1, n, 1))
    return x, r.requires_grad_(), t


def losses(x, r, t, multiplexed=True):
    return md.negative_psnr(md.errors(md.answers(x, r, multiplexed), t))


# --- answers ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "K"), [(1, 1), (2, 3), (4, 10), (8, 36)])
def test_n_heads_give_all_pairwise_means(n, K):
    x, r, _ = drawn(n=n)
    y = md.answers(x, r)
    assert y.shape[1] == K
    pairs = [(x + (r[:, [i]] + r[:, [j]]) / 2) for i in range(n) for j in range(i + 1)]
    assert torch.allclose(y, torch.cat(pairs, 1))
    heads = md.answers(x, r, multiplexed=False)
    assert torch.allclose(heads, x + r)
    own = [k * (k + 3) // 2 for k in range(n)]
    assert torch.allclose(y[:, own], heads)


def test_the_mean_of_answers_is_the_answer_of_the_mean_so_x_enters_once():
    x, r, _ = drawn()
    heads, pairs = md.answers(x, r, False), md.answers(x, r)
    assert torch.allclose(pairs[:, 1], (heads[:, 0] + heads[:, 1]) / 2)


# --- loss ------------------------------------------------------------------------------------------


def test_one_head_has_the_usual_psnr_loss():
    x, r, t = drawn(n=1)
    usual = (10 * torch.log10((x + r - t).pow(2).mean((1, 2, 3)) + 1e-8)).mean()
    e = md.errors(md.answers(x, r), t)
    assert md.best_answer_loss(e).item() == pytest.approx(usual.item())
    assert md.every_answer_loss(e).item() == pytest.approx(usual.item())
    assert md.squared_error(e).item() == pytest.approx((x + r - t).pow(2).mean().item())


def test_a_perfect_answer_is_finite():
    assert md.negative_psnr(torch.zeros(1)).item() == pytest.approx(-80)


def test_the_best_is_found_image_by_image():
    """Not pixel by pixel (which is lower), nor one for the batch (which is higher)."""
    x, r, t = drawn(B=40)
    y = md.answers(x, r)
    e = md.errors(y, t)
    by_hand = sum(min(md.negative_psnr(e[b, k]).item() for k in range(10)) for b in range(40)) / 40
    found = md.best_answer_loss(e).item()
    assert found == pytest.approx(by_hand)
    stitched = md.negative_psnr((y - t).pow(2).amin(1).mean((1, 2))).mean().item()
    assert stitched < found < md.negative_psnr(e).mean(0).min().item()


def test_no_single_answer_beats_it_and_more_answers_never_raise_it():
    x, r, t = drawn()
    e = md.errors(md.answers(x, r), t)
    found = md.best_answer_loss(e)
    assert all(found <= md.best_answer_loss(e[:, [k]]) for k in range(10))
    assert all(
        md.best_answer_loss(e[:, :k]) >= md.best_answer_loss(e[:, : k + 1]) for k in range(1, 10)
    )


def test_the_order_of_heads_does_not_matter():
    x, r, t = drawn()
    order = torch.tensor([2, 0, 3, 1])
    for multiplexed in (False, True):
        e, turned = (md.errors(md.answers(x, q, multiplexed), t) for q in (r, r[:, order]))
        assert md.best_answer_loss(e).item() == pytest.approx(md.best_answer_loss(turned).item())
    assert torch.allclose(md.answers(x, r, False)[:, order], md.answers(x, r[:, order], False))


def test_the_minimum_is_taken_before_the_logarithm_and_means_after():
    e = torch.tensor([[1.0, 0.01], [0.04, 1.0]])
    assert md.best_answer_loss(e).item() == pytest.approx(
        (-20 + 10 * math.log10(0.04)) / 2, abs=1e-4
    )
    assert md.best_answer_loss(e).item() != pytest.approx(10 * math.log10(0.025), abs=0.1)


def test_only_the_winner_gets_a_gradient():
    x, r, t = drawn()
    e = md.errors(md.answers(x, r, False), t)
    (g,) = torch.autograd.grad(md.best_answer_loss(e), r)
    moved = g.abs().sum((2, 3)) > 0
    assert moved.sum(1).tolist() == [1] * 6
    assert moved.int().argmax(1).tolist() == e.argmin(1).tolist()
    e = md.errors(md.answers(x, r, False), t)
    (g,) = torch.autograd.grad(md.every_answer_loss(e), r)
    assert (g.abs().sum((2, 3)) > 0).all()


def test_a_pair_that_wins_halves_the_gradient():
    x, r, _ = drawn(B=1)
    t = (x + (r[:, [0]] + r[:, [2]]) / 2).detach() + 0.01
    e = md.errors(md.answers(x, r), t)
    assert e.argmin().item() == 3  # the pair (3, 1) in the order 11, 21, 22, 31
    (g,) = torch.autograd.grad(md.best_answer_loss(e), r)
    assert (g.abs().sum((2, 3)) > 0)[0].tolist() == [True, False, True, False]
    alone = ((r[:, 0] + r[:, 2]) / 2).detach().requires_grad_()
    (full,) = torch.autograd.grad(md.best_answer_loss(md.errors(x + alone[:, None], t)), alone)
    assert torch.allclose(g[:, 0], full / 2) and torch.allclose(g[:, 2], full / 2)


@pytest.mark.parametrize("start", [(0.3, 0.9), (0.05, 0.4)])
def test_bias_heads_find_both_points_or_their_mean(start):
    """A label that is 0 or 1: competing constants end on the two points, the others on a single place between."""
    t = torch.tensor([0.0, 1.0] * 8, dtype=torch.float64)[:, None]

    def train(loss):
        b = torch.tensor(start, dtype=torch.float64, requires_grad=True)
        opt = torch.optim.SGD([b], 0.05)
        for _ in range(600):
            opt.zero_grad()
            loss((b - t) ** 2).backward()
            opt.step()
        return sorted(b.tolist())

    assert train(lambda e: e.amin(1).mean()) == pytest.approx([0, 1], abs=1e-3)
    assert train(md.squared_error) == pytest.approx([0.5, 0.5], abs=1e-3)


def test_the_psnr_of_a_mean_of_logs_may_commit():
    """Two frames at squared distance d: a mean has d / 4 for sure; a frame drawn to d / 16 breaks even."""
    d = 0.3
    mean = md.negative_psnr(torch.tensor([[d / 4], [d / 4]]))
    for eps, better in [(d / 20, True), (d / 12, False)]:
        frame = md.negative_psnr(torch.tensor([[eps], [d]]))
        assert bool(frame.mean() < mean.mean()) == better
        assert torch.tensor([eps, d]).mean() > d / 4


# --- scores ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_scores_are_ordered(seed):
    g = torch.Generator().manual_seed(seed)
    psnr = torch.randn(50, 6, generator=g)
    s = md.scores(psnr, psnr)
    assert s["best_overall"] >= s["best_single"] >= s["mean"] >= s["worst"]
    assert s["best_single"] == pytest.approx(psnr.mean(0).max().item())
    assert s["best_overall"] == pytest.approx(psnr.max(1).values.mean().item())


def test_the_single_head_is_chosen_on_validation_images():
    val, test = torch.tensor([[2.0, 1.0]]), torch.tensor([[1.0, 9.0]])
    assert md.scores(val, test)["best_single"] == 1


def test_coverage_counts_modes_that_are_hit():
    g = torch.Generator().manual_seed(1)
    movies = torch.rand(7, 9, 4, 4, generator=g)
    ends = movies[:, [0, 8]]
    assert md.nearest_frame(movies, movies).tolist() == [list(range(9))] * 7
    assert md.coverage(ends, movies, [0, 8]) == 1
    assert md.coverage(ends[:, :1], movies, [0, 8]) == 0.5
    assert md.coverage(ends[:, :1].repeat(1, 5, 1, 1), movies, [0, 8]) == 0.5
    assert md.coverage(movies[:, [4]], movies, [0, 8]) == 0


def test_a_blur_of_both_ends_covers_neither():
    """On a path of bars that overlap, the mean of the ends is nearest to a frame between them."""
    movies = torch.zeros(1, 9, 4, 24)
    for f in range(9):
        movies[0, f, :, f : f + 12] = 1
    blur = movies.mean(1, keepdim=True)
    assert md.coverage(blur, movies, [0, 8]) == 0


# --- exercises and budget --------------------------------------------------------------------------


def settle(truths, answers, rounds=50, inplace=False, everything=False, nan=False, jump=False):
    answers = answers if inplace else answers.clone()
    for _ in range(rounds):
        winner = torch.cdist(truths, answers).argmin(1)
        for k in range(len(answers)):
            mine = winner == k
            if mine.any() or nan:
                answers[k] = (truths if everything else truths[mine]).mean(0)
            elif jump:
                answers[k] = truths[0]
    return answers


def relaxed(e, eps=0.05, winner=None, others=None):
    K = e.shape[1]
    winner = 1 - eps if winner is None else winner(eps)
    others = eps / (K - 1) if others is None else others(eps, K)
    weight = torch.full_like(e, others).scatter(1, e.argmin(1, keepdim=True), winner)
    return (weight.detach() * md.negative_psnr(e)).sum(1).mean()


def squares(y, t):
    return (y - t).pow(2)


def image(y, t):
    return squares(y, t).mean((2, 3)).amin(1).mean()


def pixel(y, t):
    return squares(y, t).amin(1).mean()


WRONG = {
    "check_minima": [
        (lambda y, t: (pixel(y, t), image(y, t)), "the other way round"),
        (
            lambda y, t: (squares(y, t).mean((0, 2, 3)).min(), pixel(y, t)),
            "one answer for the whole batch",
        ),
        (lambda y, t: (squares(y, t).mean(), pixel(y, t)), "mean over the answers"),
        (lambda y, t: (squares(y, t).sum((2, 3)).amin(1).mean(), pixel(y, t)), "not sums"),
        (lambda y, t: (image(y, t), image(y, t)), "the image's minimum again"),
        (lambda y, t: (image(y, t), squares(y, t).min()), "0.25, you say"),
    ],
    "check_settle": [
        (lambda t, a, r: settle(t, a, r, inplace=True), "changed in place"),
        (lambda t, a, r: settle(t, a, r, nan=True), "let it stay where it is"),
        (lambda t, a, r: settle(t, a, r, jump=True), "nothing corrects it"),
        (lambda t, a, r: settle(t, a, r, everything=True), "not all of them"),
        (lambda t, a, r: settle(t, a, 1), "one round is not enough"),
    ],
    "check_relaxed": [
        (lambda e, eps: md.every_answer_loss(e), "nothing is relaxed"),
        (
            lambda e, eps: (1 - eps) * md.best_answer_loss(e) + eps * md.every_answer_loss(e),
            "the winner is in your mean",
        ),
        (lambda e, eps: relaxed(e, eps, others=lambda eps, K: eps), "not given to each"),
        (
            lambda e, eps: (
                md.best_answer_loss(e)
                if eps == 0
                else relaxed(e, eps, winner=lambda p: p, others=lambda p, K: (1 - p) / (K - 1))
            ),
            "shares are swapped",
        ),
        (lambda e, eps: md.best_answer_loss(e), "you say"),
    ],
}


@each(WRONG)
def test_checks_name_the_mistake(name, k):
    own = {name: getattr(md, name) for name in ("best_answer_loss", "every_answer_loss")}
    assert_named("multi-output-deblur", WRONG, name, k, **own)


# What `--budget full` must be, and where it is said (the authors' training options for NAFNet, width 32).
PAPER = {
    "heads": (4, "training options: four heads"),
    "width": (32, "training options: width 32"),
    "lr": (1e-3, "training options: AdamW, learning rate 1e-3"),
}


def test_the_full_budget_is_the_papers_where_it_can_be():
    assert_papers(full_budget("multi-output-deblur"), PAPER)
