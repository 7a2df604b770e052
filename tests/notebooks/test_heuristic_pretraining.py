"""Multi-task pre-training: three losses by hand, the weighted sum, what a skipped task must not touch, the count of passes.

Sources: the official code of the building blocks (SimMIM, MoBY, ASL); of the paper only the abstract is public.
"""

import copy
import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from exercise_checks import assert_named, assert_papers, each, full_budget
from torch import nn

import lefcourse as lc
from lefcourse import catalogue
from lefcourse.chapter import params
from lefcourse.worlds import shapes

hp = lc.methods("heuristic-pretraining")
X = torch.rand(12, 3, 32, 32, generator=torch.Generator().manual_seed(0))
Y = (torch.rand(12, 5, generator=torch.Generator().manual_seed(1)) < 0.3).float()


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def make_trunk():
    torch.manual_seed(0)
    return hp.Trunk(4, 8)


def make_tasks(trunk, steps=4, contrast_seed=3, places=1):
    """The three questions, small; the weights of each from a seed of its own."""
    torch.manual_seed(1)
    labels = hp.MultiLabel(X, Y, 8, 4, gen(1))
    torch.manual_seed(2)
    restore = hp.Restore(X, 8, 4, gen(2))
    torch.manual_seed(3)
    contrast = hp.MoBY(X, trunk, 4, gen(contrast_seed), steps, K=16, places=places)
    return {"labels": labels, "restore": restore, "contrast": contrast}


# --- labels ----------------------------------------------------------------------------------------


def test_the_list_has_28_answers_and_relations_ignore_the_order():
    s = shapes.sample(40, objects=(1, 3), shapes=hp.SEEN, seed=1)
    y = hp.multilabels(s)
    assert y.shape == (40, 28) == (40, len(hp.LABELS))
    assert not set(shapes.SHAPES[8:]) & set(hp.LABELS)
    mirrored = replace(s, centre=s.centre * torch.tensor([-1.0, 1]) + torch.tensor([32.0, 0]))
    assert hp.multilabels(mirrored).equal(y)
    for n in range(40):
        there = [k for k in range(3) if s.valid[n, k]]
        gaps = [(s.centre[n, j] - s.centre[n, k]).abs() for j in there for k in there if j < k]
        assert y[n, 26] == any(g[0] >= g[1] for g in gaps)
        assert y[n, 27] == any(g[0] < g[1] for g in gaps)
        assert {c for c in range(8) if y[n, 4 + c]} == {int(s.shape[n, k]) for k in there}
        assert y[n, :4].argmax() == s.style[n]


def test_asl_by_a_double_loop():
    z, total = drawn(12, 5), 0.0
    for i in range(12):
        for c in range(5):
            p = 1 / (1 + math.exp(-z[i, c].item()))
            pm = max(p - 0.05, 0)
            yes, no = (1 - p) * math.log(p), pm**4 * math.log(1 - pm)
            total -= yes if Y[i, c] else no
    assert hp.asl(z, Y).item() == pytest.approx(total, rel=1e-5)


def test_asl_without_focus_and_shift_is_binary_cross_entropy():
    z = drawn(12, 5)
    expected = F.binary_cross_entropy_with_logits(z, Y, reduction="sum")
    assert hp.asl(z, Y, 0.0, 0.0, 0.0).item() == pytest.approx(expected.item(), rel=1e-5)
    assert hp.bce(z, Y).item() == pytest.approx(expected.item(), rel=1e-5)


def test_an_easy_no_and_an_unlabeled_row_cost_nothing():
    z = torch.tensor([[math.log(0.04 / 0.96), 0.0]], requires_grad=True)
    hp.asl(z, torch.zeros(1, 2)).backward()
    assert z.grad[0, 0] == 0 and z.grad[0, 1] != 0
    assert hp.asl(torch.tensor([[math.log(0.04 / 0.96)]]), torch.zeros(1, 1)) == 0
    z = drawn(2, 5).requires_grad_()
    hp.asl(z, torch.cat([Y[:1], -torch.ones(1, 5)])).backward()
    assert (z.grad[1] == 0).all() and (z.grad[0] != 0).any()


def test_the_focus_is_held_constant():
    z = torch.tensor([[0.3]], requires_grad=True)
    hp.asl(z, torch.ones(1, 1)).backward()
    p = torch.sigmoid(torch.tensor(0.3))
    assert z.grad.item() == pytest.approx(-((1 - p) * (1 - p)).item(), rel=1e-5)  # (1-p) d log p


def test_the_loss_is_divided_by_the_labeled_pictures():
    seen = []
    torch.manual_seed(0)
    y = torch.cat([Y[:6], -torch.ones(6, 5)])
    task = hp.MultiLabel(X, y, 8, 12, gen(), loss=lambda z, y: seen.append(y) or z.sum() * 0 + 1)
    assert task.loss(make_trunk()).item() == pytest.approx(1 / 6)
    assert len(seen[0]) == 12


# --- masked image modeling -------------------------------------------------------------------------


@pytest.mark.parametrize(("share", "side"), [(0.6, 4), (0.6, 6), (0.5, 3)])
def test_exactly_so_many_units_are_hidden(share, side):
    hide = hp.hide_units(30, side, share, gen())
    assert (hide.flatten(1).sum(1) == math.ceil(share * side * side)).all()
    assert len({tuple(h.flatten().tolist()) for h in hide}) > 10


def test_mim_counts_hidden_pixels_alone():
    x, guess = drawn(3, 3, 8, 8), drawn(3, 3, 8, 8, seed=1)
    M = (torch.rand(3, 1, 8, 8, generator=gen()) < 0.6).float()
    loss = hp.mim_loss(x, guess, M)
    on = M.expand_as(x) > 0
    assert loss.item() == pytest.approx((x - guess).abs()[on].mean().item(), rel=1e-4)
    assert hp.mim_loss(x, torch.where(on, guess, guess + 5), M).equal(loss)
    assert hp.mim_loss(x, torch.where(on, guess + 5, guess), M) > loss


def test_the_token_replaces_what_is_hidden():
    trunk = make_trunk().eval()
    hide = hp.hide_units(12, 4, 0.6, gen())
    pixels = F.interpolate(hide[:, None].float(), (32, 32)) > 0
    with torch.no_grad():
        said = trunk(X, hide)
        assert said.equal(trunk(torch.where(pixels, 1 - X, X), hide))
        assert not said.equal(trunk(torch.where(pixels, X, 1 - X), hide))
        assert not said.equal(trunk(torch.where(pixels, 0.5, X)))  # grey pixels are no token
        trunk.token += 1
        assert not said.equal(trunk(X, hide))


def test_restoring_the_visible_is_the_complement(monkeypatch):
    masks = []
    monkeypatch.setattr(hp, "mim_loss", lambda x, g, M: masks.append(M) or g.sum())
    for where in ("hidden", "visible"):
        torch.manual_seed(0)
        hp.Restore(X, 8, 4, gen(), where=where).loss(make_trunk())
    assert (masks[0] + masks[1] == 1).all()
    assert masks[0].mean().item() == pytest.approx(10 / 16)


# --- contrast --------------------------------------------------------------------------------------


def test_the_contrast_of_equals_with_an_orthogonal_queue():
    q, K, tau = torch.eye(40)[:3], 30, 0.2
    loss = hp.contrast_loss(q, q, torch.eye(40)[5 : 5 + K], tau)
    assert loss.item() == pytest.approx(math.log(1 + K * math.exp(-1 / tau)), rel=1e-4)


def spy(monkeypatch):
    seen, real = [], hp.contrast_loss

    def watched(q, k, queue, tau):
        seen.append((q, k, queue.clone()))
        return real(q, k, queue, tau)

    monkeypatch.setattr(hp, "contrast_loss", watched)
    return seen


def test_keys_come_from_the_moved_copy_and_enter_the_queue_after_the_loss(monkeypatch):
    seen, trunk = spy(monkeypatch), make_trunk()
    task = make_tasks(trunk)["contrast"]
    with torch.no_grad():
        for p in trunk.parameters():
            p += 0.1
    before, old = task.queue.clone(), copy.deepcopy(task.slow)
    task.loss(trunk).backward()
    q, k, queue = seen[0]
    assert queue.equal(before) and not k.requires_grad and q.requires_grad
    assert task.queue[:4].equal(k) and task.queue[4:].equal(before[:-4])
    assert all(p.grad is None for p in task.slow.parameters())
    for slow, was, fast in zip(
        task.slow[0].parameters(), old[0].parameters(), trunk.parameters(), strict=True
    ):
        assert torch.allclose(slow, 0.9 * was + 0.1 * fast, atol=1e-6)
    assert torch.allclose(k.norm(dim=1), torch.ones(4), atol=1e-5)


def test_the_momentum_rises_to_one():
    trunk = make_trunk()
    task = make_tasks(trunk, steps=10)["contrast"]
    p, s = next(trunk.parameters()), next(task.slow.parameters())
    moved = []
    for t in range(11):
        task.t = t
        with torch.no_grad():
            s.zero_(), p.fill_(1.0)
        task.follow(trunk)
        moved.append(s.mean().item())
    assert moved[0] == pytest.approx(0.1) and moved[5] == pytest.approx(0.05)
    assert moved[10] == pytest.approx(0, abs=1e-6)


def test_dense_contrast_compares_the_same_place_of_two_views_cut_alike(monkeypatch):
    seen, cut, trunk = spy(monkeypatch), [], make_trunk()
    real = hp.strong
    monkeypatch.setattr(hp, "strong", lambda x, g, j, d: cut.append(d) or real(x, g, j, d))
    make_tasks(trunk, places=4)["contrast"].loss(trunk)
    assert len(seen[0][0]) == 4 * 16 and cut[0].equal(cut[1])
    make_tasks(trunk, places=1)["contrast"].loss(trunk)
    assert len(seen[1][0]) == 4 and cut[3] is None
    m = drawn(2, 3, 8, 8)
    rows = make_tasks(trunk, places=4)["contrast"].rows(m)
    assert torch.allclose(rows[16 + 4 * 1 + 2], m[1, :, 2:4, 4:6].mean((1, 2)))


# --- the sum ---------------------------------------------------------------------------------------


def state(trunk):
    return torch.cat([p.detach().flatten() for p in [*trunk.parameters(), *trunk.buffers()]])


def test_the_gradient_of_the_total_is_the_weighted_sum():
    w = {"labels": 1.0, "restore": 0.7, "contrast": 0.3}
    found = []
    for together in (True, False):
        trunk = make_trunk()
        tasks = make_tasks(trunk)
        losses = {n: task.loss(trunk) for n, task in tasks.items()}
        ps = list(trunk.parameters())
        if together:
            sum(w[n] * v for n, v in losses.items()).backward()
        else:
            grads = {n: torch.autograd.grad(v, ps, allow_unused=True) for n, v in losses.items()}
            hp.add_up(ps, grads, w)
        found.append(torch.cat([p.grad.flatten() for p in ps]))
    assert torch.allclose(*found, atol=1e-6)


def test_weight_zero_is_the_arm_without_the_task_bit_for_bit():
    class Poison(nn.Module):
        def loss(self, trunk):
            raise AssertionError("a task of weight 0 was asked")

    ends = []
    for kind in ("without", "zero", "poison"):
        trunk = make_trunk()
        tasks = make_tasks(trunk, contrast_seed=9 if kind == "zero" else 3)
        if kind == "poison":
            tasks = {"contrast": Poison()} | tasks | {"contrast": Poison()}
        w = {"labels": 1.0, "restore": 0.7, "contrast": 0.0}
        if kind == "without":
            del tasks["contrast"], w["contrast"]
        hp.pretrain(trunk, tasks, 4, 0.01, weights=w)
        ends.append(state(trunk))
    assert ends[0].equal(ends[1]) and ends[0].equal(ends[2])
    trunk = make_trunk()
    hp.pretrain(trunk, make_tasks(trunk), 4, 0.01, weights=dict(w, contrast=0.3))
    assert not state(trunk).equal(ends[0])


def test_calibration_makes_the_gradients_equally_long_and_keeps_the_weights():
    trunk = make_trunk()
    log = hp.pretrain(trunk, make_tasks(trunk), 4, 0.01, calibrate=2)
    assert log[1]["weights"] == dict.fromkeys(log[1]["weights"], 1.0)
    lengths = [log[2]["weights"][n] * g.norm().item() for n, g in log[2]["grads"].items()]
    assert max(lengths) / min(lengths) < 1.01
    assert log[2]["weights"] == log[3]["weights"] and log[2]["weights"]["labels"] == 1.0
    size = sum(p.numel() for p in trunk.last.parameters())
    assert all(len(g) == size for g in log[2]["grads"].values())


# --- the count of passes ---------------------------------------------------------------------------


def test_what_a_step_costs_is_what_the_trunks_have_seen():
    for names in (["labels"], ["restore", "contrast"], ["labels", "restore", "contrast"]):
        trunk = make_trunk()
        tasks = {n: t for n, t in make_tasks(trunk).items() if n in names}
        hp.pretrain(trunk, tasks, 3, 0.01)
        seen = trunk.seen + sum(t.slow[0].seen for t in tasks.values() if hasattr(t, "slow"))
        assert seen == pytest.approx(3 * sum(t.cost for t in tasks.values()))
    assert seen == pytest.approx(3 * 4 * (3 + 1 / 3))


def test_the_arms_get_the_same_number_of_passes():
    default = {
        n: p.default for n, p in params.read(catalogue.get("heuristic-pretraining").path).items()
    }
    passes, batch = default["passes"], default["batch"]
    for share, cost in [(1, 1), (1, 7 / 3), (1, 10 / 3), (0.5, 1), (0.5, 7 / 3), (1, 2)]:
        steps = round(share * passes / (batch * cost))
        assert steps * batch * cost == pytest.approx(share * passes, rel=0.01)


# --- transfer --------------------------------------------------------------------------------------


def test_statistics_are_those_of_clean_pictures():
    trunk = make_trunk()
    hp.pretrain(trunk, make_tasks(trunk), 3, 0.01)
    weights = [p.detach().clone() for p in trunk.parameters()]
    hp.refresh(trunk, X)
    assert not trunk.training
    assert all(p.equal(w) for p, w in zip(trunk.parameters(), weights, strict=True))
    first = trunk.body[0]
    with torch.no_grad():
        z = first[0](trunk.embed(hp.normal(X)))
    assert torch.allclose(first[1].running_mean, z.mean((0, 2, 3)), atol=1e-5)
    again = state(hp.refresh(trunk, X))
    assert again.equal(state(hp.refresh(trunk, X)))


def test_the_linear_head_finds_a_linear_rule_and_the_scores_are_the_usual_ones():
    from sklearn.metrics import jaccard_score, r2_score

    f = drawn(200, 6)
    target = f @ drawn(6, 2, seed=1) + 3
    assert hp.explained(hp.linear(f, target, F.mse_loss, 2, decay=0.0)(f), target) > 0.999
    a, b = drawn(50, 2, seed=2), drawn(50, 2, seed=3)
    expected = r2_score(b, a, multioutput="variance_weighted")
    assert hp.explained(a, b) == pytest.approx(expected, rel=1e-4)
    said, truth = (torch.randint(4, (300,), generator=gen(s)) for s in (1, 2))
    expected = jaccard_score(truth, said, average="macro")
    assert hp.mean_iou(said, truth, 4) == pytest.approx(expected)
    assert hp.mean_iou(said, truth, 9) == pytest.approx(expected)  # absent classes do not count


# --- exercises and budget --------------------------------------------------------------------------


def front(s, valid=True, meet=True, near=True, up=True):
    c, r, d, v = s.centre, s.radius, s.depth, s.valid
    pair = d[:, :, None] < d[:, None] if near else d[:, :, None] > d[:, None]
    pair = pair & (
        c[:, :, None, 1] < c[:, None, :, 1] if up else c[:, :, None, 1] > c[:, None, :, 1]
    )
    if meet:
        pair = pair & ((c[:, :, None] - c[:, None]).norm(dim=-1) < r[:, :, None] + r[:, None])
    if valid:
        pair = pair & v[:, :, None] & v[:, None]
    return pair.flatten(1).any(1).float()


WRONG = {
    "check_steps": [
        (lambda p, a, b: round(p / a), "not free"),
        (lambda p, a, b: round(p / (a + b)), "not a whole one"),
        (lambda p, a, b: round(p / (a + 2 * b / 3)), "not two thirds"),
        (lambda p, a, b: int(p / (a + b / 3)), "round to the nearest"),
        (lambda p, a, b: p / (a + b / 3), "167 steps"),
        (lambda p, a, b: float(round(p / (a + b / 3))), "a whole number"),
    ],
    "check_uncertain": [
        (lambda L, s: (torch.exp(-s) * L).sum(), "nothing holds s down"),
        (lambda L, s: (torch.exp(s) * L + s).sum(), "not exp"),
        (lambda L, s: (torch.exp(-s) * L - s).sum(), "price of a small weight"),
        (lambda L, s: (torch.exp(-s) * L + s).mean(), "not a mean"),
        (lambda L, s: (torch.exp(-s) * L + s / 2).sum(), "the total is"),
    ],
    "check_front": [
        (lambda s: front(s, near=False), "turned round"),
        (lambda s: front(s, up=False), "turned round"),
        (lambda s: front(s, meet=False), "do not overlap"),
        (lambda s: front(s, valid=False), "ask `valid`"),
        (lambda s: front(s)[:, None], "one answer for each scene"),
        (lambda s: torch.zeros(len(s)), "the answers are"),
    ],
}


@each(WRONG)
def test_checks_name_the_mistake(name, k):
    assert_named("heuristic-pretraining", WRONG, name, k)


# What `--budget full` must be, and where it is said; the paper's own settings are not public.
PAPER = {
    "hidden": (0.6, "SimMIM, data_simmim.py"),
    "queue": (4096, "MoBY, moby.py"),
    "tau": (0.2, "MoBY, moby.py"),
    "momentum": (0.99, "MoBY, moby.py"),
}


def test_the_full_budget_is_that_of_the_building_blocks():
    full = full_budget("heuristic-pretraining")
    assert_papers(full, PAPER)
    assert full["labeled"] == full["scenes"]
