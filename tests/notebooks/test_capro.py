"""CAPro's graph, anchors, rule, prototypes and losses against slow definitions, and the exercises. Source: brief of the paper and its code."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from exercise_checks import assert_named, assert_papers, each, full_budget

import lefcourse as lc

cap = lc.methods("capro")
C, D, B, N = 4, 8, 12, 20  # classes, dimensions of z, pictures, keys


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def unit(n, seed=0, d=D):
    return F.normalize(torch.randn(n, d, generator=rng(seed), dtype=torch.float64), dim=1)


# --- texts ---------------------------------------------------------------------------------------


def test_graph_is_its_definition():
    v, k = torch.randn(15, 6, generator=rng(), dtype=torch.float64), 3
    u = [row / row.norm() for row in v]
    W = torch.zeros(15, 15, dtype=torch.float64)
    for i in range(15):
        cosine = {j: float(u[i] @ u[j]) for j in range(15) if j != i}
        for j in sorted(cosine, key=cosine.get, reverse=True)[:k]:
            W[i, j] = max(cosine[j], 0)
    W = torch.maximum(W, W.T)
    A = cap.neighbour_graph(v, k)
    assert torch.allclose(A, W / W.sum(1, keepdim=True))
    assert torch.allclose(A.sum(1), torch.ones(15, dtype=torch.float64))
    assert (A.diagonal() == 0).all()


def test_an_isolated_picture_gets_no_text_and_nan_none():
    v = torch.tensor([[1.0, 0], [0.9, 0.1], [-1, 0]])
    A = cap.neighbour_graph(v, 2)
    assert (A[2] == 0).all() and torch.allclose(A[:2].sum(1), torch.ones(2))
    assert torch.isfinite(cap.text_distance(A @ torch.ones(3, 4), torch.ones(2, 4))).all()


def test_smoothing_is_a_convex_combination():
    A = cap.neighbour_graph(torch.rand(15, 6, generator=rng()), 3)
    same = torch.tensor([0.3, -1.0, 2.0]).expand(15, 3)
    assert torch.allclose(A @ same, same, atol=1e-6)
    s = torch.randn(15, 3, generator=rng(1))
    assert (A @ s <= s.amax(0) + 1e-6).all() and (A @ s >= s.amin(0) - 1e-6).all()


def test_distance_is_of_cosines_and_one_for_no_text():
    s = torch.tensor([[2.0, 0], [0, 0], [-3, 0]])
    assert torch.allclose(
        cap.text_distance(s, torch.tensor([[5.0, 0]])), torch.tensor([[0.0], [1], [2]])
    )


def test_anchors_are_ranked_inside_their_own_class():
    y = torch.tensor([0, 0, 0, 1, 1, 1])
    distance = torch.tensor([[0.9, 0], [0.8, 0], [0.7, 0], [0, 0.3], [0, 0.1], [0, 0.2]])
    T = cap.anchors(distance, y, 2)
    # Class 0 gets its share although all its texts are far: no threshold; class 1 ranks by its own column.
    assert T.tolist() == [False, True, True, False, True, True]
    assert cap.anchors(distance, y, 99).all()


def test_a_minority_can_be_the_anchors():
    y, truth = torch.zeros(10, dtype=torch.long), torch.tensor([0] * 3 + [1] * 7)
    distance = torch.stack([truth * 0.5 + 0.1, 0.6 - truth * 0.5], 1)
    assert torch.equal(cap.anchors(distance, y, 3), truth == 0)


# --- the rule ------------------------------------------------------------------------------------


def test_the_rule_has_three_branches_and_an_exception():
    m = torch.tensor(
        [
            [0.7, 0.1, 0.1, 0.1],  # sure of another class: corrected
            [0.6, 0.4, 0.0, 0.0],  # 0.6 is enough
            [0.59, 0.3, 0.11, 0.0],  # not sure, but 1 is plausible: left
            [0.5, 0.25, 0.25, 0.0],  # exactly chance is plausible
            [0.5, 0.2, 0.3, 0.0],  # below chance: dropped
            [0.9, 0.0, 0.1, 0.0],  # an anchor, though sure of another
            [0.5, 0.0, 0.5, 0.0],  # an anchor that would be dropped
        ]
    )
    y = torch.ones(7, dtype=torch.long)
    anchor = torch.tensor([False] * 5 + [True] * 2)
    new, kept = cap.clean(m, y, anchor, 0.6)
    assert new.tolist() == [0, 0, 1, 1, 1, 1, 1]
    assert kept.tolist() == [True, True, True, True, False, True, True]
    assert (y == 1).all(), "the labels must not change in place"


def test_mixture_is_half_classifier_half_prototypes():
    z, P = unit(B), unit(C, 1)
    logits = torch.randn(B, C, generator=rng(2), dtype=torch.float64)
    m = cap.mixture(logits, z, P)
    for i in range(B):
        by_f, by_p = logits[i].exp(), torch.stack([(z[i] @ P[c] / 0.1).exp() for c in range(C)])
        assert torch.allclose(m[i], by_f / by_f.sum() / 2 + by_p / by_p.sum() / 2)


# --- the poll ------------------------------------------------------------------------------------


def auxiliary():
    torch.manual_seed(3)
    return torch.nn.Linear(D, C).double()


def test_the_poll_is_linear_in_the_similarities():
    z, queue, P, f = unit(B), unit(N, 1), unit(C, 2), auxiliary()
    said = cap.collective_target(z, queue, f, P)
    for i in range(B):
        w = torch.tensor([max(float(z[i] @ q), 0) + 1e-7 for q in queue], dtype=torch.float64)
        told = 0
        for j, q in enumerate(queue):
            opinion = 0.5 * F.softmax(f(q), 0) + 0.5 * F.softmax(P @ q / 0.1, 0)
            told = told + w[j] / w.sum() * opinion
        assert torch.allclose(said[i], told)
    assert torch.allclose(said.sum(1), torch.ones(B, dtype=torch.float64))
    assert not said.requires_grad


def test_if_all_keys_agree_the_poll_says_what_they_say():
    q = unit(1).expand(N, D)
    told = cap.collective_target(unit(B, 1), q, auxiliary(), unit(C, 2))
    one = cap.mixture(auxiliary()(q[:1]), q[:1], unit(C, 2))
    assert torch.allclose(told, one.expand(B, C))


def test_if_one_key_alone_is_similar_the_poll_is_its_opinion():
    z = torch.eye(D, dtype=torch.float64)[:1]
    queue = torch.cat([z, -unit(N).abs()])
    told = cap.collective_target(z, queue, auxiliary(), None)
    assert torch.allclose(told, F.softmax(auxiliary()(z), 1), atol=1e-5)


# --- prototypes ----------------------------------------------------------------------------------


def test_prototypes_move_picture_by_picture_and_keep_unit_length():
    P, z, mu = unit(C), unit(B, 1), 0.8
    y = torch.tensor([0, 1, 0, 2, 0, 1, 2, 2, 0, 1, 1, 0])  # class 3 has none
    slow = P.clone()
    for i in range(B):
        slow[y[i]] = mu * slow[y[i]] + (1 - mu) * z[i]
    new = cap.update_prototypes(P, z, y, mu)
    assert torch.allclose(new, F.normalize(slow, dim=1))
    assert torch.allclose(new.norm(dim=1), torch.ones(C, dtype=torch.float64))
    assert torch.allclose(new[3], P[3])
    assert torch.allclose(cap.update_prototypes(P, z[:0], y[:0], mu), P)


def test_prototypes_start_from_the_chosen_alone():
    z, y = unit(B), torch.arange(B) % C
    chosen = torch.arange(B) < 2 * C
    first = cap.first_prototypes(z, y, chosen, C)
    for c in range(C):
        assert torch.allclose(first[c], F.normalize((z[c] + z[c + C]) / 2, dim=0))


# --- losses and one step -------------------------------------------------------------------------


def test_info_nce_with_a_queue_that_says_nothing():
    eye = torch.eye(10, dtype=torch.float64)
    loss = cap.info_nce(eye[:1], eye[:1], eye[1:])
    assert math.isclose(loss.item(), math.log(1 + 9 * math.exp(-1 / 0.1)), rel_tol=1e-9)


def test_without_prototypes_poll_and_removal_it_is_cross_entropy():
    logits, aux = torch.randn(2, B, C, generator=rng())
    y, kept = torch.arange(B) % C, torch.ones(B, dtype=torch.bool)
    target = torch.full((B, C), 1 / C)
    loss = cap.label_losses(logits, aux, None, y, kept, None, target, 0.0)
    assert torch.allclose(loss, F.cross_entropy(logits, y) + F.cross_entropy(aux, y))


def test_label_losses_are_means_over_the_kept():
    logits, aux = torch.randn(2, B, C, generator=rng(), dtype=torch.float64)
    z, P, y, b = unit(B), unit(C, 1), torch.arange(B) % C, 0.3
    target = F.softmax(torch.randn(B, C, generator=rng(4), dtype=torch.float64), 1)
    kept = torch.arange(B) % 3 > 0
    total = 0
    for i in kept.nonzero()[:, 0]:
        p, q = F.log_softmax(logits[i], 0), F.log_softmax(aux[i], 0)
        proto = F.log_softmax(P @ z[i] / 0.1, 0)
        total -= p[y[i]] + (1 - b) * q[y[i]] + b * (target[i] * q).sum() + proto[y[i]]
    loss = cap.label_losses(logits, aux, z, y, kept, P, target, b)
    assert torch.allclose(loss, total / kept.sum())
    assert cap.label_losses(logits, aux, z, y, kept & False, P, target, b) == 0


def small():
    torch.manual_seed(0)
    net = cap.CAProNet(C, width=4, z_dim=D)
    state = cap.State(net, N, rng(1))
    x = torch.randn(B, 3, 8, 8, generator=rng(2))
    return state, x, torch.arange(B) % C, torch.zeros(B, dtype=torch.bool)


HOW = dict(threshold=0.6, cleaning=False, b=0.1, mu=0.9, momentum=0.9)


def test_the_slow_encoder_gets_no_gradient_and_stays_if_told_so():
    state, x, y, nobody = small()
    before = copy.deepcopy(state.slow)
    loss, *_ = cap.step(state, x, x, y, nobody, **HOW | dict(momentum=1.0))
    loss.backward()
    assert all(p.grad is None and not p.requires_grad for p in state.slow.parameters())
    pairs = zip(before.parameters(), state.slow.parameters(), strict=True)
    assert all(torch.equal(p, q) for p, q in pairs)
    assert not state.queue.requires_grad


def test_the_slow_encoder_is_a_moving_average():
    state, x, y, nobody = small()
    with torch.no_grad():
        for p in state.slow.parameters():
            p.zero_()
    cap.step(state, x, x, y, nobody, **HOW)
    for p, q in zip(state.slow.parameters(), state.net.encoder.parameters(), strict=True):
        assert torch.allclose(p, 0.1 * q, atol=1e-7)


def test_keys_enter_the_queue_in_front_and_the_oldest_leave():
    state, x, y, nobody = small()
    old = state.queue.clone()
    cap.step(state, x, x, y, nobody, **HOW)
    assert len(state.queue) == N and torch.equal(state.queue[B:], old[: N - B])
    assert torch.allclose(state.queue.norm(dim=1), torch.ones(N))


def test_dropped_pictures_still_count_in_the_losses_without_labels():
    """All labels are implausible: what is left is L_inst and L_rec, on all pictures."""
    state, x, _, nobody = small()
    other, before = x.flip(-1), state.queue.clone()
    state.prototypes = F.normalize(torch.eye(C, D), dim=1)
    with torch.no_grad():
        state.net.classifier.weight.zero_()
        state.net.classifier.bias.copy_(torch.tensor([0.0, 9, 0, 0]))
        state.prototypes.copy_(
            torch.eye(D)[:1].expand(C, D)
        )  # f and prototypes: p of class 0 < 1/4
    start = state.prototypes.clone()
    loss, _, kept = cap.step(
        state, x, other, torch.zeros(B, dtype=torch.long), nobody, **HOW | dict(cleaning=True, threshold=1.1)
    )  # fmt: skip
    assert not kept.any() and torch.allclose(state.prototypes, start)
    v = state.net.encoder(x)
    z = state.net.project(v)
    alone = cap.info_nce(z, state.queue[:B], before)
    alone = alone + F.mse_loss(state.net.reconstructor(z), v)
    assert torch.allclose(loss, alone, atol=1e-5)
    g = list(state.net.projector.parameters())
    by_instance = torch.autograd.grad(cap.info_nce(z, state.queue[:B], before), g)
    loss.backward()
    assert state.net.encoder[0].weight.grad.abs().sum() > 0
    for p, expected in zip(g, by_instance, strict=True):  # with prototypes r(z) trains r alone
        assert torch.allclose(p.grad, expected, atol=1e-6)


def test_in_stage_1_the_loss_is_the_sum_of_all_and_reconstruction_trains_the_projector():
    state, x, y, nobody = small()
    before = state.queue.clone()
    loss, new, kept = cap.step(state, x, x.flip(-1), y, nobody, **HOW)
    net, v = state.net, state.net.encoder(x)
    z = net.project(v)
    target = cap.collective_target(z, state.queue, net.auxiliary, None)
    total = cap.info_nce(z, state.queue[:B], before)
    total = total + F.mse_loss(net.reconstructor(z), v.detach())
    total = total + cap.label_losses(
        net.classifier(v), net.auxiliary(z), z, y, ~nobody, None, target, 0.1
    )
    assert torch.allclose(loss, total) and torch.equal(new, y) and kept.all()
    g = list(net.projector.parameters())
    for one, other in zip(torch.autograd.grad(loss, g), torch.autograd.grad(total, g), strict=True):
        assert torch.allclose(one, other, atol=1e-6)


def test_prototypes_are_data_without_gradient():
    state, x, y, nobody = small()
    state.prototypes = cap.first_prototypes(state.key(x), y, ~nobody, C)
    loss, *_ = cap.step(state, x, x, y, nobody, **HOW)
    loss.backward()
    assert not state.prototypes.requires_grad
    assert torch.allclose(state.prototypes.norm(dim=1), torch.ones(C), atol=1e-6)


def views(images, generator):
    return images


def test_anchors_are_never_touched_and_others_are():
    state, x, y, nobody = small()
    state.prototypes = F.normalize(torch.randn(C, D, generator=rng(5)), dim=1)
    how = dict(epochs=2, batch=6, lr=0.01, weak=views, strong=views, start_clean=1, threshold=0.26)
    frozen = copy.deepcopy(state)
    rates = cap.train_capro(frozen, x, y, ~nobody, generator=rng(), **how)
    assert torch.allclose(rates, torch.tensor([[1.0, 0, 0]] * 2))
    rates = cap.train_capro(state, x, y, nobody, generator=rng(), **how)
    assert torch.allclose(rates.sum(1), torch.ones(2))
    assert rates[0].tolist() == [1, 0, 0] and rates[1, 0] < 1, "cleaning begins with its epoch"
    new, kept, v = cap.relabel(frozen, x, y, ~nobody, 0.26)
    assert torch.equal(new, y) and kept.all() and v.shape == (B, 16)


def test_the_last_stage_trains_the_classifier_alone():
    state, x, y, _ = small()
    before = copy.deepcopy(state.net)
    v = lc.predict(state.net.encoder, x)
    cap.finish(state, v, y, epochs=2, batch=6, lr=0.1, generator=rng())
    for (name, p), q in zip(state.net.named_parameters(), before.parameters(), strict=True):
        assert torch.equal(p, q) == (not name.startswith("classifier"))


# --- the paper's setting, and the exercises ------------------------------------------------------

PAPER = {
    "stage2": (60, "config_train.py and shells: WebVision1k, epochs"),
    "batch": (256, "shells: batch size over 8 GPUs"),
    "lr": (0.1, "shells, cosine"),
    "K": (50, "paper: size of the anchor set of a class"),
    "queue": (8192, "config_train.py"),
    "momentum": (0.999, "config_train.py: momentum encoder"),
    "proto_momentum": (0.999, "config_train.py: prototypes"),
    "start_clean": (10, "config_train.py: start_clean_epoch, WebVision1k"),
    "stage3": (20, "paper: fine-tuning of the classifier"),
    "threshold": (0.6, "config_train.py"),
    "b": (0.1, "paper: collective bootstrapping"),
}


def test_the_full_budget_has_the_papers_constants():
    assert_papers(full_budget("capro"), PAPER)


def shares(order):
    def answer(distance, y, truth, c, Ks):
        chosen = order(distance, y, c)
        return [(truth[chosen[:K]] == c).float().mean().item() for K in Ks]

    return answer


def inside(distance, y, c, sign=1):
    mine = (y == c).nonzero()[:, 0]
    return mine[(sign * distance[mine, c]).argsort(stable=True)]


def in_place(A, w):
    A += w * torch.eye(len(A))
    A /= A.sum(1, keepdim=True)
    return A


def as_score(sign):
    def auroc(m, stranger):
        s = sign * m.max(1).values
        pairs = [(a > b).item() for a in s[stranger] for b in s[~stranger]]
        return float(np.mean(pairs))

    return auroc


WRONG = {
    "check_precision": [
        (shares(lambda d, y, c: d[:, c].argsort()), "rank inside the class"),
        (shares(lambda d, y, c: inside(d, y, c, -1)), "smallest distance"),
        (lambda d, y, t, c, Ks: [(t[inside(d, y, c)[:K]] == c).sum().item() for K in Ks], "counts"),
        (lambda d, y, t, c, Ks: [0.5 for _ in Ks], "in this order"),
    ],
    "check_with_self": [
        (in_place, "in place"),
        (lambda A, w: A + w * torch.eye(len(A)), "sums to two"),
        (lambda A, w: (A + w * torch.eye(len(A))) / (1 + w), "sums to a half"),
        (lambda A, w: A / A.sum(1, keepdim=True), "lost its text"),
        (lambda A, w: torch.eye(len(A)), "w = 0"),
    ],
    "check_auroc": [
        (as_score(1), "the sign"),
        (
            lambda m, stranger: ((m.max(1).values < 0.45 + 1e-6) == stranger).float().mean().item(),
            "at a threshold",
        ),
        (lambda m, stranger: 0.7, "you say"),
    ],
}


@each(WRONG)
def test_typical_wrong_answers_are_named(name, k):
    assert_named("capro", WRONG, name, k)


@pytest.mark.parametrize("text", ["clip"])
def test_the_clip_text_tower_reads_the_texts(text):
    """Every word that the chapter writes is in the tower's vocabulary, and a definition is nearest to its own name."""
    from lefcourse import miniclip

    tower = miniclip.load()
    texts = ["a picture of a star", "here is a small red ring", "a heart"]
    told = [
        "a picture of a star, this is a star, it is one emblem",
        "a picture of a ring, this is a hoop, it is one roundel",
        "a picture of a heart, this is a heart, it is one emblem",
    ]
    with torch.no_grad():
        distance = cap.text_distance(tower.encode_text(texts), tower.encode_text(told))
    assert distance.argmin(1).tolist() == [0, 1, 2]
