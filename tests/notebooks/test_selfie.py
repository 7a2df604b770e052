"""The game with hidden pieces: what may be seen, what may not, its loss, and what fine-tuning takes over.

Brief sources: the paper's text as summarised, and the reimplementation wuhoward/SELFIE where it is silent.
"""

import copy
import itertools
import math

import pytest
import torch
from exercise_checks import assert_named, assert_papers, each, full_budget
from realdata import assert_runs

import lefcourse as lc

selfie = lc.methods("selfie")
G, n, m, B = 4, 16, 4, 3


@pytest.fixture
def model():
    torch.manual_seed(0)
    made = selfie.Selfie(1, 4, G, layers=2, heads=2).double().eval()
    for norm in (part for part in made.P.modules() if isinstance(part, torch.nn.BatchNorm2d)):
        norm.bias.data.uniform_(0.3, 0.6)  # no patch may fall silent
    for code in (made.rows, made.columns, made.u0):
        code.data.normal_()
    return made


@pytest.fixture
def x():
    return torch.rand(B, 1, 16, 16, generator=torch.Generator().manual_seed(1)).double()


@pytest.fixture
def order():
    return torch.rand(B, n, generator=torch.Generator().manual_seed(2)).argsort(1)


# --- pieces ----------------------------------------------------------------------------------------


def test_patches_are_cut_row_by_row(x):
    cut = selfie.patches(x, G)
    assert cut.shape == (B, n, 1, 4, 4)
    for b, r, c in itertools.product(range(B), range(G), range(G)):
        piece = x[b, :, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4]
        assert cut[b, r * G + c].equal(piece)


def test_each_patch_is_seen_alone(model, x):
    """Features of the whole image, cut up, would look over the edge."""
    h = model.features(x)
    changed = x.clone()
    changed[:, :, 4:8, 4:8] += 1  # patch 5
    moved = (model.features(changed) - h).abs().amax(2) > 1e-12
    assert moved.nonzero()[:, 1].unique().tolist() == [5]


def test_codes_are_sums_of_row_and_column(model):
    e = model.codes().view(G, G, -1)
    across = e[:, 1] - e[:, 3]
    assert torch.allclose(across, across[:1].expand(G, -1))
    assert model.rows.numel() + model.columns.numel() == 2 * G * 16
    assert torch.allclose(e[2, 1], model.rows[2] + model.columns[1])


# --- the loss --------------------------------------------------------------------------------------


def slow_loss(model, x, order, m):
    """By loops over images, holes and candidates."""
    h, e = model.features(x), model.codes()
    total = 0.0
    for b in range(len(x)):
        T, C = order[b, :m], order[b, m:]
        u = model.pool((h[b, C])[None], e[C][None])[0][0]
        for t in T:
            v = u + e[t]
            s = [(v @ h[b, j]).item() for j in T]
            total += math.log(sum(map(math.exp, s))) - (v @ h[b, t]).item()
    return total / (len(x) * m)


@pytest.mark.parametrize("m", [1, 2, 4, 12])
def test_the_loss_is_a_double_loop(model, x, order, m):
    fast = selfie.selfie_loss(selfie.scores(model, x, order, m))
    assert fast.item() == pytest.approx(slow_loss(model, x, order, m), abs=1e-10)


def test_candidates_carry_no_position(model, x, order):
    """s_tj = v_t . h_j: with v and h known, nothing else may enter."""
    h, e = model.features(x), model.codes()
    s = selfie.scores(model, x, order, m)
    u = model.pool(selfie.pick(h, order[:, m:]), e[order[:, m:]])[0]
    for b, t, j in itertools.product(range(B), range(m), range(m)):
        v = u[b] + e[order[b, t]]
        assert s[b, t, j].item() == pytest.approx((v @ h[b, order[b, j]]).item())


def test_equal_pieces_and_a_silent_question_cost_the_logarithm_of_m():
    for s in (torch.zeros(B, m, m), torch.randn(B, m, 1).expand(B, m, m)):
        assert selfie.selfie_loss(s).item() == pytest.approx(math.log(m))


def test_one_hole_teaches_nothing(model, x, order):
    loss = selfie.selfie_loss(selfie.scores(model, x, order, 1))
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or p.grad.abs().max() < 1e-12 for p in model.parameters())


def test_targets_may_be_drawn_by_lot():
    s = torch.randn(B, m, m)
    lots = torch.tensor([[1, 0, 2, 3], [3, 3, 3, 3], [0, 1, 2, 2]])
    log = s.log_softmax(2)
    by_hand = -sum(log[b, t, lots[b, t]] for b in range(B) for t in range(m)) / (B * m)
    assert selfie.selfie_loss(s, lots).item() == pytest.approx(by_hand.item())
    right = torch.arange(m).expand(B, m)
    assert selfie.selfie_loss(s, right).equal(selfie.selfie_loss(s))


def test_all_holes_at_once_are_the_mean_of_single_ones(model, x, order):
    s = selfie.scores(model, x, order, m)
    one_by_one = [selfie.selfie_loss(s[:, [t]], torch.full((B, 1), t)) for t in range(m)]
    assert selfie.selfie_loss(s).item() == pytest.approx(torch.stack(one_by_one).mean().item())


# --- symmetries ------------------------------------------------------------------------------------


def test_the_order_of_hidden_and_of_visible_pieces_does_not_matter(model, x, order):
    loss = selfie.selfie_loss(selfie.scores(model, x, order, m)).item()
    mixed = order.clone()
    mixed[:, :m] = order[:, [2, 0, 3, 1]]
    assert selfie.selfie_loss(selfie.scores(model, x, mixed, m)).item() == pytest.approx(loss)
    mixed[:, m:] = order[:, m:].flip(1)
    assert selfie.selfie_loss(selfie.scores(model, x, mixed, m)).item() == pytest.approx(loss)


def test_positions_of_the_visible_pieces_matter(model, x, order):
    """Without e_i the pooling would see a set."""
    h, e, C = model.features(x), model.codes(), order[:, m:]
    u, _ = model.pool(selfie.pick(h, C), e[C])
    swapped, _ = model.pool(selfie.pick(h, C), e[C.flip(1)])
    assert (u - swapped).abs().max() > 1e-3
    blind, _ = model.pool(selfie.pick(h, C), 0 * e[C])
    blind_again, _ = model.pool(selfie.pick(h, C.flip(1)), 0 * e[C])
    assert torch.allclose(blind, blind_again)


def test_hidden_pixels_cannot_reach_the_summary(model, x, order):
    """In evaluation mode; in training, batch normalisation couples all patches."""
    x.requires_grad_()
    h, e, C = model.features(x), model.codes(), order[:, m:]
    u, _ = model.pool(selfie.pick(h, C), e[C])
    (g,) = torch.autograd.grad(u.square().sum(), x)
    seen = selfie.patches(g, G).abs().flatten(2).sum(2) > 0
    for b in range(B):
        assert not seen[b, order[b, :m]].any()
        assert seen[b, order[b, m:]].any()


def test_without_a_position_all_holes_ask_the_same(model, x, order):
    s = selfie.scores(model, x, order, m, e_query=False)
    assert torch.allclose(s, s[:, :1].expand_as(s))
    p = s.softmax(2).diagonal(dim1=1, dim2=2).mean(1)
    assert torch.allclose(p, torch.full_like(p, 1 / m))
    assert not torch.allclose(*selfie.scores(model, x, order, m)[:, :2].unbind(1))


def test_one_gradient_through_both_roles_of_P(model, x, order):
    """Nothing is stopped: P learns from the visible patches and from the candidates."""
    h = model.features(x).detach().requires_grad_()
    e, T, C = model.codes(), order[:, :m], order[:, m:]
    u, _ = model.pool(selfie.pick(h, C), e[C])
    by_hand = selfie.selfie_loss((u[:, None] + e[T]) @ selfie.pick(h, T).transpose(1, 2))
    (g,) = torch.autograd.grad(by_hand, h)
    assert (g.abs().sum(2) > 0).all()
    x.requires_grad_()
    (pixels,) = torch.autograd.grad(selfie.selfie_loss(selfie.scores(model, x, order, m)), x)
    reached = selfie.patches(pixels, G).abs().flatten(2).sum(2) > 0
    expected = selfie.patches(torch.autograd.grad(model.features(x), x, g)[0], G)
    assert torch.allclose(selfie.patches(pixels, G), expected) and reached.any(1).all()


def test_attention_of_the_summary_is_over_visible_pieces_alone(model, x, order):
    h, e, C = model.features(x), model.codes(), order[:, m:]
    _, weights = model.pool(selfie.pick(h, C), e[C])
    assert weights.shape == (B, n - m) and (weights > 0).all() and (weights.sum(1) < 1).all()


# --- training and what is kept ---------------------------------------------------------------------


def test_pretraining_moves_everything_and_repeats(x):
    def trained():
        torch.manual_seed(0)
        game, g = selfie.Selfie(1, 2, G, 1, 2), torch.Generator().manual_seed(3)
        before = copy.deepcopy(game.state_dict())
        drawn = []

        def loss(model, images, order):
            drawn.append(order)
            return selfie.selfie_loss(selfie.scores(model, images, order, m))

        how = dict(steps=2, batch=3, lr=0.01, distort=lambda images, g: images, generator=g)
        history = selfie.pretrain(game, x.float(), loss, **how)
        return game, before, history, drawn

    game, before, history, drawn = trained()
    assert len(history) == 2 and history == trained()[2]
    still = [k for k, p in game.named_parameters() if p.equal(before[k])]
    assert not [k for k in still if "bias" not in k], still  # a key's bias has no gradient
    for orders in drawn:
        assert orders.sort(1).values.equal(torch.arange(n).expand(len(orders), n))
    assert not drawn[0][0].equal(drawn[0][1]), "every image has holes of its own"


def test_fine_tuning_starts_with_the_weights_of_P_bit_for_bit(model):
    torch.manual_seed(5)
    net, fresh = selfie.Network(1, 4, 7).double(), selfie.Network(1, 4, 7).double()
    kept = {k: v.clone() for k, v in net.state_dict().items() if not k.startswith("stem")}
    selfie.start_from(net, model.P)
    for k, v in model.P.state_dict().items():
        assert net.stem.state_dict()[k].equal(v)
    for k, v in kept.items():
        assert net.state_dict()[k].equal(v)
    net.stem[0].weight.data += 1
    assert not net.stem[0].weight.equal(model.P[0].weight), "a copy, not the same tensor"
    assert fresh(torch.zeros(2, 1, 20, 20).double()).shape == (2, 7)


# --- exercises, budget, real data --------------------------------------------------------------------


def banked(weight, g):
    return torch.stack(
        [f.flatten()[torch.randperm(f.numel(), generator=g)].view_as(f) for f in weight]
    )


def kernels(weight, g):
    flat = weight.flatten(0, 1)
    return flat[torch.randperm(len(flat), generator=g)].view_as(weight)


def in_place(weight, g):
    weight.copy_(weight.flatten()[torch.randperm(weight.numel(), generator=g)].view_as(weight))
    return weight


WRONG = {
    "check_leak": [
        (lambda e, T: (e @ e.T)[: len(T), : len(T)], "not the first m"),
        (lambda e, T: (e[T] @ e[T].T).diag().diag(), "all candidates compete"),
        (lambda e, T: e[T] @ e.T, "three holes and three candidates"),
        (lambda e, T: torch.cdist(e[T], e[T]), "s_tj = e_t . e_j"),
    ],
    "check_lowest": [
        (lambda groups: sum(map(math.log, groups)) / len(groups), "not over groups"),
        (lambda groups: sum(k * math.log(k) for k in groups), "four equal pieces"),
        (lambda groups: math.log(sum(groups)), "loss can be zero"),
        (lambda groups: math.log(max(groups)), "three holes at ln 3"),
        (lambda groups: sum(k * math.log2(k) for k in groups) / sum(groups), "ln 4"),
    ],
    "check_shuffled": [
        (banked, "within each filter"),
        (kernels, "kernels have stayed together"),
        (in_place, "leave the given weights"),
        (lambda weight, g: torch.randn(weight.shape, generator=g), "numbers themselves"),
        (lambda weight, g: weight.clone(), "nothing has moved"),
        (lambda weight, g: weight.flatten(), "the shape stays"),
    ],
}


@each(WRONG)
def test_checks_name_the_mistake(name, k):
    assert_named("selfie", WRONG, name, k, math=math)


# What `--budget full` must be, and where it is said.
PAPER = {
    "dataset": ("cifar10", "paper, section 4"),
    "grid": (4, "paper: 8-pixel patches of 32-pixel images"),
    "hidden": (4, "wuhoward/SELFIE: a quarter; the paper's share is not verified"),
    "layers": (3, "wuhoward/SELFIE, train_selfie.py"),
    "heads": (32, "wuhoward/SELFIE, train_selfie.py"),
    "pre_batch": (128, "wuhoward/SELFIE"),
    "pre_steps": (70_200, "200 epochs of 45,000 images"),
    "batch": (256, "wuhoward/SELFIE, train_full.py"),
    "weight_decay": (1e-4, "wuhoward/SELFIE"),
    "per_class": (225, "5 % of 45,000"),
}


def test_the_full_budget_is_the_papers_setting():
    assert_papers(full_budget("selfie"), PAPER)


@pytest.mark.realdata
def test_it_runs_on_mnist(tmp_path):
    assert_runs("selfie", "mnist", tmp_path, size=28)
