"""COMIC against definitions, limits and slow loops. Brief sources: paper, released code (as said where they differ)."""

import math

import pytest
import torch
import torch.nn.functional as F
from exercise_checks import assert_named, assert_papers, checks, each, full_budget
from realdata import assert_runs_on_a_voc_folder

import lefcourse as lc

comic = lc.methods("comic")
B, C, D = 7, 5, 6


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


P = draw(B, C).sigmoid()
Y = (draw(B, C, seed=1) > 0.3).float()
N = torch.tensor([700, 90, 90, 12, 0])


# --- M: the multi-focal modifier -----------------------------------------------------------------


def test_without_focus_it_is_binary_cross_entropy_summed_over_classes():
    by_torch = F.binary_cross_entropy(P, Y, reduction="none").sum(1).mean()
    plain = dict(g_pn=(0.0, 0.0), w=(0.0, 0.0), shift=0.0)
    assert comic.mfm(P, Y, **plain) == pytest.approx(by_torch.item(), rel=1e-5)
    assert comic.bce(P, Y, torch.tensor([3.0])) == pytest.approx(by_torch.item(), rel=1e-5)


def test_without_rarity_it_is_the_asymmetric_loss():
    q = (1 - P + 0.05).clamp(max=1)
    slow = -(Y * (1 - P) ** 1 * P.log() + (1 - Y) * (1 - q) ** 4 * q.log()).sum(1).mean()
    assert comic.mfm(P, Y, g_pn=(1.0, 4.0), w=(0.0, 0.0)) == pytest.approx(slow.item(), rel=1e-5)
    no_focus = dict(g_pn=(0.0, 4.0), w=(0.0, 0.0))
    assert torch.equal(comic.asl(P, Y), comic.mfm(P, Y, **no_focus))


def test_the_modifier_is_its_definition_class_by_class():
    r = comic.rarity(N)
    total = 0.0
    for i in range(B):
        for c in range(C):
            p, q = P[i, c].item(), min(1 - P[i, c].item() + 0.05, 1)
            if Y[i, c]:
                total -= r[c].item() * (1 - p) ** (0.5 + 2 * r[c].item()) * math.log(p)
            else:
                total -= r[c].item() * (1 - q) ** (3 + r[c].item()) * math.log(q)
    ours = comic.mfm(P, Y, r, g_pn=(0.5, 3.0), w=(2.0, 1.0))
    assert ours.item() == pytest.approx(total / B, rel=1e-4)


def test_focus_is_a_constant():
    z = draw(B, C).requires_grad_()
    r = comic.rarity(N)
    (slope,) = torch.autograd.grad(comic.mfm(z.sigmoid(), Y, r), z)
    q = (1.05 - P).clamp(max=1)
    by_hand = torch.where(
        Y > 0, -r * (1 - P), r * (1 - q) ** (3 + r) * (P * (1 - P) / q) * (P > 0.05)
    )
    assert torch.allclose(slope, by_hand / B, atol=1e-6)


def test_a_positive_of_a_rare_class_weighs_more_and_its_easy_negatives_less():
    p, one = torch.full((1, 2), 0.3), torch.ones(1, 2)
    r = torch.tensor([1.0, 1.8])
    pull = lambda y: torch.stack([comic.mfm(p[:, c], y[:, c], r[c]) for c in (0, 1)])  # noqa: E731
    assert pull(one)[1] > pull(one)[0] and pull(0 * one)[1] < pull(0 * one)[0]


def test_loss_is_finite_at_the_ends():
    p = torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.5]], requires_grad=True)
    value = comic.mfm(p, torch.tensor([[1.0, 0, 0, 1, 1]]), comic.rarity(N))
    (slope,) = torch.autograd.grad(value, p)
    assert value.isfinite() and slope.isfinite().all()


def test_rarity_begins_at_one_and_grows():
    r = comic.rarity(N)
    assert r[0] == 1 and (r.diff() >= 0).all() and r[1] == r[2] and r.isfinite().all()
    assert r[3] == pytest.approx((1 - math.log(12 / 700)) ** (1 / 3))
    assert comic.rarity(N, 1 / 6)[3] == pytest.approx(r[3].sqrt())
    more = comic.rarity(N + torch.tensor([0, 0, 0, 30, 0]))
    assert more[3] < r[3] and torch.equal(more[:3], r[:3])
    assert torch.equal(comic.rarity(torch.zeros(3)), torch.ones(3))


# --- C: the corrector ----------------------------------------------------------------------------


def test_recalls_need_both_thresholds_and_leave_observed_labels_alone():
    p = torch.tensor([[0.9, 0.75, 0.69, 0.9]])
    y = torch.tensor([[0.0, 0, 0, 1]])
    average = torch.tensor([0.95, 0.1, 0.1, 0.1])
    assert comic.recall(p, y, average).tolist() == [[False, True, False, False]]
    assert comic.recall(p, y, average.fill_(0.1)).tolist() == [[True, True, False, False]]


def test_the_corrector_keeps_averages_recalls_and_the_dynamic_distribution():
    y = torch.zeros(6, 2)
    y[:4, 0], y[0, 1] = 1, 1
    corrector = comic.Corrector(2, y, mu=0.5)
    index, p = torch.tensor([4, 1]), torch.tensor([[[0.9, 0.8], [0.2, 0.9]], [[0.1, 0.1]] * 2])
    before = corrector.rarity()
    corrected = corrector.update(index, p.requires_grad_())
    assert corrected[0].tolist() == [[1, 1], [1, 1]] and torch.equal(corrected[1], y[index])
    assert corrector.table[0].nonzero().tolist() == [[1, 1], [4, 0], [4, 1]]
    assert torch.allclose(corrector.P, 0.5 * p.detach().mean(1)) and not corrected.requires_grad
    r = corrector.rarity()
    assert torch.allclose(r[0, 0], comic.rarity(torch.tensor([5, 3])))
    assert torch.equal(r[1], before[1]) and r[0, 0, 1] < before[0, 0, 1]
    corrector.update(index, 0 * p)  # no longer sure: forgotten
    assert not corrector.table.any()
    still = comic.Corrector(1, y, dynamic=False)
    still.table[:] = True
    assert torch.equal(still.rarity()[0, 0], comic.rarity(y.sum(0)))


def test_the_corrected_loss_is_scaled_by_images_over_positives():
    p, y = P.expand(2, B, C), torch.stack([Y, 0 * Y])
    r = torch.ones(2, 1, C)
    ours = comic.rlc(comic.mfm, p, y, r)
    assert ours[0] == pytest.approx((B / Y.sum() * comic.mfm(P, Y)).item(), rel=1e-5)
    assert ours[1] == pytest.approx((B * comic.mfm(P, 0 * Y)).item(), rel=1e-5)  # N_t = 0


# --- B: the balancer -----------------------------------------------------------------------------


def head(groups=1, seed=3):
    found = comic.NormalisedHead(D, C, groups)
    found.weight.data = draw(C, D, seed=seed)
    return found


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_the_normalised_classifier_is_its_formula_and_sees_directions_only(groups):
    f, classifier = draw(B, D), head(groups)
    z = classifier(f)
    for i, c in ((0, 0), (3, 4)):
        parts = zip(f[i].chunk(groups), classifier.weight[c].chunk(groups), strict=True)
        slow = sum(w @ v / ((w.norm() + 1 / 32) * v.norm()) for v, w in parts)
        assert z[i, c].item() == pytest.approx(16 / groups * slow.item(), rel=1e-4)
    assert torch.allclose(classifier(7 * f), z, atol=1e-5)


def nets():
    found = []
    for k in range(3):
        torch.manual_seed(k)
        net = lc.nets.mlp((1, 2, 2), C, hidden=(D,))
        net.head = comic.NormalisedHead(D, C)
        found.append(net)
    return found


def test_with_no_direction_the_views_are_the_logits():
    three, x = comic.Balance(nets()), draw(B, 1, 2, 2).abs()
    plain = torch.stack([net(x) for net in three.nets])
    assert torch.allclose(three.logits(x), plain) and not three.e.any()


def test_directions_move_by_batch_means_and_the_views_part():
    three, x = comic.Balance(nets(), mu=0.5), draw(B, 1, 2, 2).abs()
    mean = torch.stack([net.features(x).mean(0) for net in three.nets[:2]])
    three.logits(x, move=True)
    z = three.logits(x, move=True)
    assert torch.allclose(three.e, 1.5 * mean, atol=1e-6) and not three.e.requires_grad
    plain = [net(x) for net in three.nets]
    u = [n.head.common(n.features(x), e) for n, e in zip(three.nets[:2], three.e, strict=True)]
    assert torch.allclose(z[0], plain[0] - u[0]) and torch.allclose(z[1], plain[1] + 2 * u[1])
    assert torch.allclose(z[2], plain[2])
    f = 3 * three.e[0].expand(2, -1)  # of an image along e the head view sees nothing
    assert (three.nets[0].head(f) - three.nets[0].head.common(f, three.e[0])).abs().max() < 1e-4


def test_shares_of_the_experts():
    one = torch.tensor(1.0)
    assert [k.item() for k in comic.shares(one, one)] == [0.5, 0.5]
    h, t = comic.shares(3 * one, one)
    assert h.item() == pytest.approx(0.9) and (h + t).item() == pytest.approx(1)
    assert [k.item() for k in comic.shares(0 * one, 0 * one)] == [0.5, 0.5]


@pytest.mark.parametrize("agree", [comic.agreement, comic.literal_agreement])
def test_no_gradient_reaches_an_expert_through_the_agreement(agree):
    z_hat, z_b = draw(B, C, seed=5).requires_grad_(), draw(B, C, seed=6).requires_grad_()
    s = agree(z_hat, z_b)
    assert (s > 0).all() and (s <= 1).all()
    s.sum().backward()
    assert z_hat.grad is None and z_b.grad.abs().max() > 0


def test_both_readings_of_the_agreement():
    product = F.softmax(P, 1) * F.softmax(2 * P, 1)
    assert torch.allclose(comic.agreement(P, 2 * P), product / product.amax(1, keepdim=True))
    literal = comic.literal_agreement(P, 2 * P)
    assert torch.allclose(literal, product.sigmoid())
    sure = comic.literal_agreement(torch.tensor([[50.0, 0]]), torch.tensor([[50.0, 0]]))
    assert sure.min() == pytest.approx(0.5) and sure.max() == pytest.approx(0.731, abs=1e-3)


def test_as_a_probability_the_product_asks_for_what_the_expert_lacks():
    """Two positives, an expert that prefers the first: the gradient lifts the second."""
    z_b = torch.zeros(1, 2, requires_grad=True)
    s = comic.agreement(torch.tensor([[2.0, 0.0]]), z_b)
    (slope,) = torch.autograd.grad(comic.mfm(s, torch.ones(1, 2)), z_b)
    assert slope[0, 1] < -0.1 < slope[0, 0]


# --- all together --------------------------------------------------------------------------------


def test_the_balancer_teaches_the_balanced_network_only():
    z = draw(3, B, C, seed=8).requires_grad_()
    corrector, r = comic.Corrector(3, Y), comic.rarity(Y.sum(0))
    index = torch.arange(B)
    (with_b,) = torch.autograd.grad(comic.comic_loss(z, Y, index, corrector, r, (0, 1.0, 1.0)), z)
    (without,) = torch.autograd.grad(comic.comic_loss(z, Y, index, corrector, r, (0, 1.0, 0)), z)
    assert torch.equal(with_b[:2], without[:2]) and not torch.allclose(with_b[2], without[2])


def test_the_loss_is_the_weighted_sum_of_its_parts():
    z, r, index = draw(3, B, C, seed=8), comic.rarity(Y.sum(0)), torch.arange(B)
    lam, corrector = (0.3, 0.7, 0.4), comic.Corrector(3, Y)
    ours = comic.comic_loss(z, Y, index, corrector, r, lam)
    again = comic.Corrector(3, Y)
    corrected = again.update(index, z.sigmoid())
    parts = 0.7 * comic.mfm(z.sigmoid(), Y.expand(3, B, C), r)
    parts = parts + 0.3 * comic.rlc(comic.mfm, z.sigmoid(), corrected, again.rarity())
    assert ours == pytest.approx((parts.sum() + 0.4 * comic.htb(comic.mfm, z, Y, r)).item())
    warm = comic.comic_loss(z, Y, index, corrector, r, lam, warm=True)
    plain = 0.7 * comic.mfm(z.sigmoid(), Y.expand(3, B, C), r).sum()
    assert warm == pytest.approx((plain + 0.4 * comic.htb(comic.mfm, z, Y, r)).item())


def train(networks, **change):
    x, y = draw(12, 1, 2, 2, seed=9), (draw(12, C, seed=10) > 0.5).float()
    own = dict(lr=0.01, lam=(0.2, 1.0, 1.0), epochs=2, batch=5) | change
    return comic.train_comic(networks, x, y, generator=torch.Generator().manual_seed(4), **own), y


def test_training_recalls_after_the_first_epoch_and_never_what_was_observed():
    (three, corrector, history), y = train(nets(), tau=0.05)
    assert history.shape == (2, 12, C) and not history[0].any() and history[1].any()
    assert not (history[1] & (y > 0)).any()
    assert torch.equal(history[1], corrector.table[-1]) and three.e.any()


def test_alone_the_balanced_network_is_the_same_as_beside_idle_experts():
    (beside, *_), _ = train(nets(), lam=(0.2, 1.0, 0.0))
    (alone, *_), _ = train(nets()[2:], lam=(0.2, 1.0, 1.0))
    for a, b in zip(beside.nets[-1].parameters(), alone.nets[-1].parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-6)


def test_rivals_are_their_definitions():
    n = torch.tensor([500.0, 20, 20, 3, 1])
    w = (1 - 0.999) / (1 - 0.999**n)
    right = torch.where(Y > 0, P, 1 - P)
    slow = -(w / w.mean() * (1 - right) ** 2 * right.log()).sum(1).mean()
    assert comic.class_balanced(P, Y, n) == pytest.approx(slow.item(), rel=1e-4)
    z, loss = torch.tensor([[2.0, 0.5]]), comic.PseudoLabels(first=1)
    none, both = torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])
    assert loss(z, none) == pytest.approx(comic.bce(z.sigmoid(), none).item())
    assert loss(z, none) == pytest.approx(comic.bce(z.sigmoid(), both).item())


# --- the paper's setting, and the exercises ------------------------------------------------------

# What `--budget full` must be, and where it is said (brief: paper, section 4.1; data: PLT-VOC).
PAPER = {
    "size": (224, "implementation details"),
    "batch": (32, "implementation details"),
    "epochs": (40, "implementation details"),
    "mu": (0.9, "implementation details, momentum"),
    "tau": (0.7, "implementation details"),
    "known": (0.6, "40 % of the labels missing"),
    "lost": ("random", "labels are erased at random"),
    "train": (2569, "PLT-VOC"),
    "test": (4952, "PLT-VOC, test images of VOC 2007"),
    "lam_c": (0.2, "released code; not printed in the paper"),
    "lam_m": (1.0, "released code; not printed in the paper"),
    "alpha_e": (2.0, "released code"),
}


def test_the_full_budget_is_the_papers_setting():
    assert_papers(full_budget("comic"), PAPER)


def q_of(p, k):
    return (p / k).clamp(max=1)


def crowded(y, share, power=-1.0):
    m = y.sum(1, keepdim=True)
    raw = y * m**power
    return (raw * share * y.sum() / raw.sum()).clamp(max=1)


WRONG = {
    "check_chance": [
        (q_of, "before you know"),
        (lambda p, k: q_of(p, k) * (1 - k), "divide by"),
        (lambda p, k: p * (1 - k) / (1 - p), "get q from it"),
        (lambda p, k: (p / k) * (1 - k) / (1 - p), "leaves"),
        (lambda p, k: 0 * p, "you say"),
    ],
    "check_width": [
        (lambda n, width, times: times * width, "nine times"),
        (lambda n, width, times: math.sqrt(times) * width, "an integer"),
        (lambda n, width, times: width, "one of the three"),
        (lambda n, width, times: round(math.sqrt(times) * width) + 2, "a neighbour"),
    ],
    "check_company": [
        (lambda y, s: torch.full_like(y, s), "an absent class"),
        (lambda y, s: s * y, "company"),
        (lambda y, s: crowded(y, s, 1.0), "company"),
        (lambda y, s: y / y.sum(1, keepdim=True) / 4, "on average"),
        (lambda y, s: 2 * y / y.sum(1, keepdim=True), "above 1"),
        (lambda y, s: crowded(y, s, -0.5), "ratio"),
    ],
}


@each(WRONG)
def test_typical_wrong_answers_are_named(name, k):
    assert_named("comic", WRONG, name, k)


def test_the_formula_written_another_way_passes():
    def chance(p, k):
        p = p.clamp(max=k)
        return ((p / k) - p) / (1 - p)

    checks("comic")["check_chance"](chance, strict=True)


@pytest.mark.realdata
def test_runs_as_it_is_on_a_folder_of_annotations(tmp_path):
    assert_runs_on_a_voc_folder("comic", tmp_path, train=40, val=12, test=20)
