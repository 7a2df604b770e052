"""LaSO's sets, networks, losses and pairs; the drawn operations, the regressions and the episodes.

Brief sources: the paper; the authors' res_setops.py, train_setops_stripped.py and test_augmentation.py.
"""

import itertools

import pytest
import torch
import torch.nn.functional as F
from exercise_checks import assert_named, assert_papers, each, full_budget
from torch import nn

import lefcourse as lc
from lefcourse.worlds import scenes

laso = lc.methods("laso")
EXACT = {"U": torch.maximum, "I": torch.minimum, "S": lambda a, b: F.relu(a - b)}


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def rand(*shape, seed=0):
    return torch.rand(*shape, generator=rng(seed))


def hot(n, c, seed=0, share=0.4):
    return (rand(n, c, seed=seed) < share).float()


def networks(d=6, n=1, residual=True, seed=0):
    torch.manual_seed(seed)
    return laso.operations(d, n, residual)


def classifier(d=6, c=4):
    torch.manual_seed(1)
    return nn.Linear(d, c).requires_grad_(False)


# --- sets ------------------------------------------------------------------------------------------


def test_label_sets_are_sets_for_all_pairs_of_three_classes():
    rows = [torch.tensor(r, dtype=torch.float) for r in itertools.product([0, 1], repeat=3)]
    for p, q in itertools.product(rows, rows):
        a, b = ({k for k in range(3) if v[k]} for v in (p, q))
        got = {k: {c for c in range(3) if v[c]} for k, v in laso.label_sets(p, q).items()}
        assert got == {"U": a | b, "I": a & b, "S": a - b}
        assert all(v.max() <= 1 and v.min() >= 0 for v in laso.label_sets(p, q).values())
        parts, back = laso.label_sets(p, q), laso.label_sets(q, p)
        assert torch.equal(laso.label_sets(parts["S"], parts["I"])["U"], p)
        assert torch.equal(parts["U"], back["U"]) and torch.equal(parts["I"], back["I"])
        assert torch.equal(parts["S"], back["S"]) == torch.equal(p, q)


# --- pictures drawn to order -----------------------------------------------------------------------


def some(n, seed):
    return scenes.make(n, classes=6, objects=(1, 3), size=24, generator=rng(seed))


@pytest.mark.parametrize("which", ["U", "I", "S"])
def test_a_drawn_picture_has_exactly_the_objects_of_the_set(which):
    a, b = some(40, 1), some(40, 2)
    made, wanted = laso.drawn(which, a, b), laso.label_sets(a.labels, b.labels)[which]
    there = F.one_hot(made.kind.clamp_min(0), 6) * (made.kind >= 0)[..., None]
    assert torch.equal((there.sum(1) > 0).float(), wanted)
    assert torch.equal(made.scenes.valid, made.kind >= 0)
    if which != "U":  # nothing of b is drawn
        assert (made.kind[:, a.kind.shape[1] :] == -1).all()
    else:  # what both show comes from a alone
        common = laso.label_sets(a.labels, b.labels)["I"]
        of_b = there[:, a.kind.shape[1] :].sum(1)
        assert (of_b * common == 0).all() and (of_b.sum() > 0)


def test_without_the_other_picture_nothing_changes():
    a = some(20, 1)
    a = a[(a.labels.sum(1) == (a.kind >= 0).sum(1)).nonzero().squeeze(1)]
    empty = scenes.dressed(a.scenes, torch.full_like(a.kind, -1), a.classes)
    assert torch.equal(laso.drawn("U", a, empty).image, a.image)
    assert torch.equal(laso.drawn("S", a, empty).image, a.image)
    assert torch.equal(laso.drawn("I", a, a).image, a.image)
    assert (laso.drawn("S", a, a).kind == -1).all()


# --- networks --------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("residual", [True, False])
def test_outputs_have_the_shape_of_features_and_are_never_negative(n, residual):
    ops = networks(n=n, residual=residual)
    a, b = rand(8, 6), rand(8, 6, seed=1)
    for op in ops.values():
        out = op(a, b)
        assert out.shape == (8, 6) and out.min() == 0 and out.max() > 0


@pytest.mark.parametrize("which", ["U", "I", "S"])
def test_with_the_learnt_part_at_zero_the_guess_is_left(which):
    op = networks()[which].eval()
    with torch.no_grad():
        op.hidden[0][0].weight.zero_()
        op.hidden[0][0].bias.zero_()
        op.last.weight.copy_(torch.eye(6))
        op.last.bias.zero_()
    a, b = rand(5, 6), rand(5, 6, seed=1)
    guess = {"U": a + b, "I": torch.minimum(a, b), "S": (a - b).clamp_min(0)}[which]
    assert torch.allclose(op(a, b), guess)


def test_equal_weights_for_both_pictures_make_union_and_intersection_symmetric():
    ops = networks()
    for op in ops.values():
        with torch.no_grad():
            op.first[0].weight[:, 6:] = op.first[0].weight[:, :6]
    a, b, y = rand(8, 6), rand(8, 6, seed=1), hot(8, 4)
    for which in "UI":
        assert torch.allclose(ops[which](a, b), ops[which](b, a), atol=1e-6)
    assert not torch.allclose(ops["S"](a, b), ops["S"](b, a), atol=1e-3)
    C, zero = classifier(), torch.zeros(8, 4)
    told = laso.losses(ops, C, a, b, y, zero)["symmetry"]
    bce, u, i = F.multilabel_soft_margin_loss, ops["U"](a, b), ops["I"](a, b)
    assert torch.allclose(told, bce(C(u), y) + bce(C(i), zero), atol=1e-5)  # no distance is left


def test_without_the_residual_the_networks_do_not_see_the_guess():
    a, b = rand(8, 6), rand(8, 6, seed=1)
    op = networks(residual=False)["U"].eval()
    with torch.no_grad():
        op.hidden[0][0].weight.zero_()
    assert torch.allclose(op(a, b), op(b, 3 * a))


# --- losses ----------------------------------------------------------------------------------------


def test_exact_operations_on_labels_as_features_rebuild_and_agree():
    a, b = hot(30, 6), hot(30, 6, seed=1)
    U, I, S = EXACT["U"], EXACT["I"], EXACT["S"]  # noqa: E741
    assert torch.equal(laso.rebuilt(U, I, S, a, b), a)
    assert torch.equal(laso.rebuilt(U, I, S, b, a), b)
    C = lambda z: 100 * (z - 0.5)  # noqa: E731  (a classifier that reads the labels off)
    for value in laso.losses(EXACT, C, a, b, a, b).values():
        assert value < 1e-6
    assert laso.tautologies(EXACT, C, a, b, a, b) < 1e-6


def test_wrong_wiring_would_be_noticed():
    a, b = hot(30, 6), hot(30, 6, seed=1)
    C = lambda z: 100 * (z - 0.5)  # noqa: E731
    turned = EXACT | {"S": lambda p, q: F.relu(q - p)}
    for ops in (turned, EXACT | {"U": EXACT["I"]}, EXACT | {"I": EXACT["U"]}):
        told = laso.losses(ops, C, a, b, a, b)
        assert told["operations"] > 1 and told["rebuilding"] > 0.1
        assert laso.tautologies(ops, C, a, b, a, b) > 1


def test_losses_are_their_definition():
    ops, C = networks().eval(), classifier()
    a, b, y, v = rand(8, 6), rand(8, 6, seed=1), hot(8, 4), hot(8, 4, seed=1)
    U, I, S = (ops[k] for k in "UIS")  # noqa: E741
    bce = lambda z, t: F.binary_cross_entropy_with_logits(C(z), t)  # noqa: E731
    both, mse = y * v, F.mse_loss
    told = laso.losses(ops, C, a, b, y, v)
    either = torch.maximum(y, v)
    first = bce(U(a, b), either) + bce(I(a, b), both)
    first = first + bce(S(a, b), y * (1 - v)) + bce(S(b, a), v * (1 - y))
    assert torch.allclose(told["operations"], first)
    second = bce(U(b, a), either) + bce(I(b, a), both)
    second = second + mse(U(a, b), U(b, a)) + mse(I(a, b), I(b, a))
    assert torch.allclose(told["symmetry"], second)
    a_hat, b_hat = U(S(a, I(b, a)), I(a, b)), U(S(b, I(a, b)), I(b, a))
    third = mse(a, a_hat) + mse(b, b_hat) + bce(a_hat, y) + bce(b_hat, v)
    assert torch.allclose(told["rebuilding"], third)


def test_gradients_pass_through_the_classifier_and_leave_it_alone():
    ops, C = networks(), classifier()
    loss = sum(
        laso.losses(ops, C, rand(8, 6), rand(8, 6, seed=1), hot(8, 4), hot(8, 4, seed=2)).values()
    )
    loss.backward()
    assert all(p.grad is None for p in C.parameters())
    assert all(
        p.grad is not None and p.grad.abs().sum() > 0 for p in ops.parameters() if p.dim() > 1
    )


# --- pairs and training ----------------------------------------------------------------------------


def test_partners_share_a_label_and_are_others():
    y = hot(60, 5, share=0.25)
    y = y[y.sum(1) > 0]
    own = torch.arange(len(y))
    seen = set()
    for seed in range(20):
        j = laso.partner(y, rng(seed))
        assert ((y * y[j]).sum(1) > 0).all() and (j != own).all()
        seen.add(int(j[0]))
    assert len(seen) > 3
    free = laso.partner(y, rng(), share=False)
    assert (free != own).all() and ((y * y[free]).sum(1) == 0).any()


def test_unseen_labels_and_pictures_without_seen_ones_change_nothing():
    """Only seen labels are handed over; pictures that show none of them are in no pair."""
    z, y = rand(40, 6), hot(40, 4, share=0.3)
    y[:10] = 0
    C, out = classifier(), []
    for noise in (0.0, 5.0):
        z2 = z.clone()
        z2[:10] += noise
        ops = networks()
        told = laso.fit_operations(ops, C, z2, y, passes=2, batch=8, lr=0.01, generator=rng())
        out.append(torch.cat([p.detach().flatten() for p in ops.parameters()]))
    assert torch.equal(*out) and told.shape == (2, 3) and not ops["U"].training


def test_each_loss_can_be_left_out_and_the_classifier_stays():
    z, y, C = rand(40, 6), hot(40, 4), classifier()
    before = C.weight.clone()
    out = []
    for use in (("operations",), ("operations", "symmetry"), ("operations", "rebuilding")):
        ops = networks()
        laso.fit_operations(ops, C, z, y, passes=1, batch=8, lr=0.01, generator=rng(), use=use)
        out.append(ops["U"].last.weight.detach().clone())
    ops = networks()
    laso.fit_operations(
        ops, C, z, y, passes=1, batch=8, lr=0.01, optimizer="sgd", generator=rng(),
        use=("operations",), extra=laso.tautologies,
    )  # fmt: skip
    out.append(ops["U"].last.weight.detach())
    assert all(not torch.equal(p, q) for p, q in itertools.combinations(out, 2))
    assert torch.equal(C.weight, before)


# --- features, regressions, episodes ---------------------------------------------------------------


def test_features_are_pooled_by_the_mean_or_the_maximum_and_scaled():
    x = rand(3, 3, 16, 16)
    for pooling, reduce in (
        ("average", lambda m: m.mean((2, 3))),
        ("max", lambda m: m.amax((2, 3))),
    ):
        torch.manual_seed(0)
        net = laso.extractor(4, 4, pooling)
        z = laso.features(net, x, 2.0)
        maps = net.body[:-2](x)
        assert torch.allclose(z, reduce(maps) / 2, atol=1e-5) and z.min() >= 0
        assert not net.training


@pytest.mark.parametrize("penalty", [0.003, 0.3])
def test_the_regression_is_at_its_optimum(penalty):
    x = torch.randn(2, 12, 5, generator=rng(), dtype=torch.float64) * 3
    y = (torch.rand(2, 12, 3, generator=rng(1)) < 0.3).double()
    y[..., 2] = 0  # a class of which an episode has none
    weight = torch.tensor([1.0] * 4 + [0.25] * 8).double()
    W = laso.logistic(x, y, weight, penalty).requires_grad_()
    logits = laso.scores(W, x[0])[0], laso.scores(W, x[1])[1]
    bce = F.binary_cross_entropy_with_logits(torch.stack(logits), y, reduction="none")
    loss = (bce.sum(2) * weight / weight.sum()).sum() + penalty / 2 * W.square().sum()
    (g,) = torch.autograd.grad(loss, W)
    assert g.abs().max() < 1e-7


def test_weights_count_as_copies():
    x, y = torch.randn(1, 6, 4, generator=rng()), hot(6, 2)[None]
    twice = laso.logistic(
        torch.cat([x, x[:, :2]], 1), torch.cat([y, y[:, :2]], 1), torch.ones(8), 0.1
    )
    weighed = laso.logistic(x, y, torch.tensor([2.0, 2, 1, 1, 1, 1]), 0.1)
    assert torch.allclose(twice, weighed, atol=1e-4)


def test_episodes_have_so_many_of_each_class_and_no_image_twice():
    y = hot(80, 3, share=0.3)
    for shots in (1, 5):
        rows = laso.supports(y, shots, 4, rng())
        assert rows.shape == (4, 3 * shots)
        for row in rows:
            assert len(row.unique()) == len(row)
            for c in range(3):
                assert (y[row[c * shots : (c + 1) * shots], c] == 1).all()
    assert not torch.equal(rows[0], rows[1])
    with pytest.raises(lc.UsageError, match="too few images"):
        laso.supports(y[:6], 5, 1, rng())


# --- the paper's setting, and the exercises --------------------------------------------------------

# What `--budget full` must be, and where it is said (the authors' repository).
PAPER = {
    "op_batch": (16, "train_setops_stripped.py"),
    "passes": (50, "README, --epochs"),
    "op_lr": (2e-3, "train_setops_stripped.py: warmed up to it in three epochs"),
    "op_weight_decay": (1e-4, "train_setops_stripped.py"),
    "optimizer": ("sgd", "train_setops_stripped.py"),
    "layers": (1, "README, --ops_layer_num, results of the paper"),
    "episodes": (10, "data_for_augmentation"),
}


def test_the_full_budget_is_the_papers_setting():
    assert_papers(full_budget("laso"), PAPER)


WRONG = {
    "check_long_way": [
        (lambda S, a, b: S(a, b), "once more"),
        (lambda S, a, b: S(S(a, b), a), "the order matters"),
        (lambda S, a, b: S(b, S(b, a) * 0), "B itself"),
        (lambda S, a, b: S(a, b)[0], "return features"),
        (lambda S, a, b: a, "only the common entry"),
    ],
    "check_counted_once": [
        (lambda a, b, e: a + b - e, "never negative"),
        (lambda a, b, e: a + b, "counted twice"),
        (lambda a, b, e: F.relu(a + b - 2 * e), "not counted at all"),
        (lambda a, b, e: (a + b) / 2, "halves the objects"),
        (lambda a, b, e: F.relu(torch.maximum(a, b) - e), "change nothing"),
    ],
}


@each(WRONG)
def test_typical_wrong_answers_are_named(name, k):
    assert_named("laso", WRONG, name, k)
