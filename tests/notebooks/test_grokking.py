"""The mechanism of grokking, against closed forms and slow definitions. Brief sources: paper, sections 2 and 3; authors' models.py."""

import math

import pytest
import torch
import torch.nn.functional as F
from exercise_checks import assert_named, assert_papers, each, full_budget

import lefcourse as lc

grok = lc.methods("grokking")


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def small(p=7, N=5, seed=0, **change):
    torch.manual_seed(seed)
    return grok.TwoLayer(p, N, **change).double()


def all_cells(p):
    return grok.make_table(p, 1.0, 0.0, order=torch.arange(p * p))


# --- the table -----------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha, xi", [(0.6, 0.3), (0.5, 0.35), (1.0, 1.0), (0.7, 0.0)])
def test_exactly_int_xi_n_training_labels_are_redrawn_and_no_test_label(alpha, xi):
    p = 23
    order = torch.randperm(p * p, generator=generator(1))
    truth = (order // p + order % p) % p
    table = grok.make_table(p, alpha, xi, order=order, lies=(truth + 1) % p)
    assert table.n == int(alpha * p * p)
    assert table.wrong.sum() == int(xi * table.n) == (table.label != table.truth).sum()
    assert table.wrong[: int(xi * table.n)].all()
    assert torch.equal(table.label[table.n :], table.truth[table.n :])


def test_cells_are_all_pairs_once_and_the_truth_is_their_sum():
    table = grok.make_table(11, 0.5, 0.2, generator=generator())
    assert len({(a, b) for a, b in zip(table.a.tolist(), table.b.tolist(), strict=True)}) == 121
    assert table.truth.tolist() == [
        (a + b) % 11 for a, b in zip(table.a.tolist(), table.b.tolist(), strict=True)
    ]


def test_validation_labels_lie_as_often_and_the_test_begins_after_them():
    p = 23
    truth = (torch.arange(p * p) // p + torch.arange(p * p) % p) % p
    table = grok.make_table(p, 0.6, 0.3, val=0.1, order=torch.arange(p * p), lies=(truth + 1) % p)
    n, m = table.n, table.m
    assert m == int(0.1 * p * p)
    assert (table.label != table.truth)[n : n + m].sum() == int(0.3 * m)
    assert torch.equal(table.label[n + m :], table.truth[n + m :])


def test_lies_are_uniform_so_the_rule_scores_one_minus_xi_plus_xi_over_p():
    p, xi = 5, 0.6
    shares = []
    for seed in range(400):
        table = grok.make_table(p, 1.0, xi, generator=generator(seed))
        shares.append(grok.measure(table.truth, table)["fitted"])
    expected = 1 - 15 / 25 + 15 / 25 / p
    assert sum(shares) / len(shares) == pytest.approx(expected, abs=0.01)
    assert {
        c
        for seed in range(20)
        for c in grok.make_table(p, 1.0, 1.0, generator=generator(seed)).label.tolist()
    } == set(range(p))


def test_the_same_generator_draws_the_same_table():
    one, two = (grok.make_table(7, 0.5, 0.5, generator=generator(3)) for _ in range(2))
    assert torch.equal(one.label, two.label) and torch.equal(one.a, two.a)
    assert not torch.equal(one.a, grok.make_table(7, 0.5, 0.5, generator=generator(4)).a)


# --- the network ---------------------------------------------------------------------------------


def test_forward_is_the_explicit_sum_over_neurons():
    p, N = 7, 5
    model = small(p, N)
    f = model(torch.tensor([2, 6]), torch.tensor([3, 0]))
    for row, (a, b) in enumerate([(2, 3), (6, 0)]):
        for c in range(p):
            total = sum(model.W[c, k] * (model.U[k, a] + model.V[k, b]) ** 2 for k in range(N))
            assert f[row, c].item() == pytest.approx(total.item(), rel=1e-12)


def test_looking_a_column_up_is_multiplying_by_a_one_hot_vector():
    p, model, table = 7, small(), all_cells(7)
    one_hot = torch.cat([F.one_hot(table.a, p), F.one_hot(table.b, p)], dim=1).double()
    slow = (one_hot @ torch.cat([model.U, model.V], dim=1).T) ** 2 @ model.W.T
    assert torch.allclose(model(table.a, table.b), slow, atol=1e-14)


def test_batchnorm_stands_after_the_square():
    model, table = small(batchnorm=True), all_cells(7)
    z = (model.U[:, table.a] + model.V[:, table.b]).T ** 2
    z = (z - z.mean(0)) / (z.var(0, unbiased=False) + model.norm.eps).sqrt()
    assert torch.allclose(model(table.a, table.b), z @ model.W.T, atol=1e-10)


def test_dropout_multiplies_the_preactivations():
    model, table = small(), all_cells(7)
    mask = grok.dropout_mask((49, 5), 0.5, generator()).double()
    z = (mask * (model.U[:, table.a] + model.V[:, table.b]).T) ** 2
    assert torch.allclose(model(table.a, table.b, mask), z @ model.W.T, atol=1e-14)
    double = model(table.a, table.b, torch.full((49, 5), 2.0).double())
    assert torch.allclose(double, 4 * model(table.a, table.b)), (
        "before the square: twice becomes four times"
    )


def test_dropout_mask_keeps_the_mean():
    mask = grok.dropout_mask((1000, 100), 0.6, generator())
    assert mask.unique().tolist() == pytest.approx([0.0, 2.5])
    assert mask.mean().item() == pytest.approx(1.0, abs=0.02)
    assert (grok.dropout_mask((3, 3), 0.0) == 1).all()


def test_initial_weights_have_the_paper_s_size():
    torch.manual_seed(0)
    model = grok.TwoLayer(97, 500)
    s = 0.5 / (2 * 500) ** (1 / 3)
    assert s == pytest.approx(0.05)
    for w in (model.U, model.V, model.W):
        assert w.std().item() == pytest.approx(s, rel=0.02) and abs(w.mean().item()) < 0.001
    assert len(list(model.parameters())) == 3, "no biases"


# --- loss and optimiser --------------------------------------------------------------------------


def test_loss_averages_over_cells_and_outputs():
    f = torch.randn(4, 7, generator=generator(), dtype=torch.float64)
    label = torch.tensor([0, 3, 6, 3])
    slow = sum((f[i, c] - float(label[i] == c)) ** 2 for i in range(4) for c in range(7)) / (4 * 7)
    assert grok.squared_error(f, label).item() == pytest.approx(slow.item(), rel=1e-12)


def test_without_a_gradient_a_step_shrinks_by_exactly_one_minus_lr_times_decay():
    model = small()
    before = [w.detach().clone() for w in model.parameters()]
    optimizer = grok.adamw(model, lr=0.01, weight_decay=15.0)
    for w in model.parameters():
        w.grad = torch.zeros_like(w)
    optimizer.step()
    for w, old in zip(model.parameters(), before, strict=True):
        assert torch.equal(w, old * (1 - 0.01 * 15.0))


def test_decay_is_decoupled_from_the_size_of_the_gradient():
    """An L2 penalty inside Adam would drown in a large gradient; decoupled decay subtracts the same."""
    moved = []
    for weight_decay in (0.0, 5.0):
        model = small()
        optimizer = grok.adamw(model, lr=0.01, weight_decay=weight_decay)
        for w in model.parameters():
            w.grad = torch.full_like(w, 1e6)
        optimizer.step()
        moved.append(model.U.detach())
    assert torch.allclose(moved[0] - moved[1], 0.05 * small().U.detach(), atol=1e-12)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_training_is_adamw_on_the_training_cells_only(dropout):
    table = grok.make_table(7, 0.5, 0.3, generator=generator())
    ours, slow = small(), small()
    grok.train(
        ours, table, steps=4, lr=0.01, weight_decay=5.0, dropout=dropout, generator=generator(2)
    )
    n, masks = table.n, generator(2)
    optimizer = torch.optim.AdamW(slow.parameters(), 0.01, betas=(0.9, 0.98), weight_decay=5.0)
    for _ in range(4):
        mask = (torch.rand(n, 5, generator=masks) >= dropout) / (1 - dropout)
        optimizer.zero_grad()
        f = slow(table.a[:n], table.b[:n], mask)
        F.mse_loss(f, F.one_hot(table.label[:n], 7).double()).backward()
        optimizer.step()
    for w, expected in zip(ours.parameters(), slow.parameters(), strict=True):
        assert torch.allclose(w, expected, atol=1e-14)


def test_training_never_looks_at_validation_or_test_labels():
    table = grok.make_table(7, 0.5, 0.3, val=0.2, generator=generator())
    other = grok.make_table(7, 0.5, 0.3, val=0.2, generator=generator())
    other.label[other.n :] = (other.label[other.n :] + 1) % 7
    one, two = small(), small()
    for model, t in ((one, table), (two, other)):
        grok.train(model, t, steps=5, dropout=0.3, generator=generator(9))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def test_batches_visit_every_cell_once_an_epoch_and_full_steps_take_all():
    batches = list(grok.cells_of_steps(21, 6, batch=7, generator=generator()))
    assert len(batches) == 6 and all(len(i) == 7 for i in batches)
    for epoch in (batches[:3], batches[3:]):
        assert torch.cat(epoch).sort().values.tolist() == list(range(21))
    assert torch.cat(batches[:3]).tolist() != torch.cat(batches[3:]).tolist()
    assert [list(range(5))[i] for i in grok.cells_of_steps(5, 2)] == [[0, 1, 2, 3, 4]] * 2


def test_dropout_is_off_when_answers_are_asked_for_and_the_mode_is_restored():
    model, table = small(batchnorm=True), all_cells(7)
    grok.train(model, table, steps=3, dropout=0.5, generator=generator())
    before = model.norm.running_mean.clone()
    assert model.training
    assert torch.equal(grok.answers(model, table), grok.answers(model, table))
    assert model.training and torch.equal(model.norm.running_mean, before)


# --- the closed-form solution and the inverse participation ratio ----------------------------------


@pytest.mark.parametrize("p, N", [(23, 128), (59, 256), (97, 500)])
def test_the_closed_form_answers_every_cell_and_each_neuron_is_a_pure_cosine(p, N):
    model = grok.analytic(p, N, generator())
    table = all_cells(p)
    assert (grok.answers(model, table) == table.truth).all()
    assert torch.allclose(grok.neuron_ipr(model), torch.ones(N), atol=1e-4)


def test_the_phase_of_the_output_must_be_the_sum_of_the_others():
    model, table = grok.analytic(23, 128, generator()), all_cells(23)
    with torch.no_grad():
        model.W.copy_(model.W.roll(1, 0))  # every answer one too large
    assert (grok.answers(model, table) == (table.truth + 1) % 23).all()
    s, zero = torch.randint(1, 12, (128,), generator=generator()), torch.zeros(128)
    with torch.no_grad():
        model = grok.analytic(23, 128, s=s, phi=zero, psi=zero)
        other = grok.analytic(23, 128, s=s, phi=zero, psi=zero + math.pi / 2)
        model.W.copy_(other.W)
        model.V.copy_(grok.analytic(23, 128, s=s, phi=zero, psi=zero - math.pi / 2).V)
    assert (grok.answers(model, table) == table.truth).float().mean() < 0.2


def test_mean_output_of_the_closed_form_is_half_a_sum_of_cosines():
    """Averaged over phases only (1/2) cos(2 pi s (a + b - c) / p) is left."""
    p, steps, s = 7, 16, 2
    turn = 2 * math.pi * torch.arange(steps) / steps
    phi, psi = (x.flatten() for x in torch.meshgrid(turn, turn, indexing="ij"))
    model = grok.analytic(p, steps**2, s=torch.full((steps**2,), s), phi=phi, psi=psi)
    table = all_cells(p)
    f = model(table.a, table.b).detach() / steps**2
    d = table.a[:, None] + table.b[:, None] - torch.arange(p)
    assert torch.allclose(f, 0.5 * torch.cos(2 * math.pi * s * d / p), atol=1e-5)


def test_ipr_is_its_definition():
    w = torch.randn(13, generator=generator(), dtype=torch.float64)
    power = []
    for j in range(7):
        re = sum(w[a] * math.cos(2 * math.pi * j * a / 13) for a in range(13))
        im = sum(w[a] * math.sin(2 * math.pi * j * a / 13) for a in range(13))
        power.append(float(re**2 + im**2))
    assert grok.ipr(w).item() == pytest.approx(
        sum(x**2 for x in power) / sum(power) ** 2, rel=1e-10
    )


@pytest.mark.parametrize("p", [13, 23, 59, 97])
def test_ipr_has_its_limits(p):
    w = torch.randn(200, p, generator=generator(), dtype=torch.float64)
    lowest = 1 / (p // 2 + 1)
    assert ((grok.ipr(w) >= lowest - 1e-12) & (grok.ipr(w) <= 1 + 1e-12)).all()
    assert grok.ipr(torch.ones(p).double()).item() == pytest.approx(1.0), (
        "the zero frequency counts"
    )
    assert grok.ipr(torch.eye(p).double()[3]).item() == pytest.approx(lowest), (
        "a spike uses all frequencies alike"
    )
    assert grok.ipr(torch.zeros(p)).item() == 0.0


def test_ipr_is_one_over_the_number_of_equal_frequencies():
    a = torch.arange(59).double()
    for count in (1, 2, 5):
        w = sum(torch.cos(2 * math.pi * s * a / 59 + s) for s in range(3, 3 + count))
        assert grok.ipr(w).item() == pytest.approx(1 / count, rel=1e-9)


def test_ipr_does_not_see_scale_or_cyclic_shift():
    w = torch.randn(4, 23, generator=generator(), dtype=torch.float64)
    assert torch.allclose(grok.ipr(w), grok.ipr(-1e-6 * w))
    assert torch.allclose(grok.ipr(w), grok.ipr(w.roll(5, dims=1)))


def test_a_neuron_s_ipr_averages_its_row_of_u_its_row_of_v_and_its_column_of_w():
    model = small(13, 4)
    slow = [
        (grok.ipr(model.U[k]) + grok.ipr(model.V[k]) + grok.ipr(model.W[:, k])) / 3
        for k in range(4)
    ]
    assert torch.allclose(grok.neuron_ipr(model), torch.stack(slow).detach())


# --- pruning -------------------------------------------------------------------------------------


def test_pruning_nothing_changes_nothing_and_pruning_all_gives_a_constant():
    model, table = small(), all_cells(7)
    f = model(table.a, table.b)
    assert torch.equal(grok.prune(model, torch.tensor([], dtype=torch.long))(table.a, table.b), f)
    assert (grok.prune(model, torch.arange(5))(table.a, table.b) == 0).all()
    assert len(grok.answers(grok.prune(model, torch.arange(5)), table).unique()) == 1


def test_pruning_in_two_steps_is_pruning_in_one_and_leaves_the_model_alone():
    model, table = small(), all_cells(7)
    before = model(table.a, table.b)
    two = grok.prune(grok.prune(model, torch.tensor([1])), torch.tensor([4, 2]))
    one = grok.prune(model, torch.tensor([1, 2, 4]))
    assert torch.equal(two(table.a, table.b), one(table.a, table.b))
    assert torch.equal(model(table.a, table.b), before)


def test_pruning_a_neuron_subtracts_its_term():
    model, table = small(), all_cells(7)
    z = (model.U[3, table.a] + model.V[3, table.b]) ** 2
    expected = model(table.a, table.b) - z[:, None] * model.W[:, 3]
    assert torch.allclose(grok.prune(model, [3])(table.a, table.b), expected, atol=1e-14)
    pruned = grok.prune(model, [3])
    assert not pruned.U[3].any() and not pruned.V[3].any() and not pruned.W[:, 3].any()


# --- the measurements ----------------------------------------------------------------------------


def test_each_share_counts_its_own_cells():
    p = 7
    truth = (torch.arange(49) // p + torch.arange(49) % p) % p
    table = grok.make_table(p, 0.5, 0.5, val=0.2, order=torch.arange(49), lies=(truth + 1) % p)
    n, m = table.n, table.m
    parrot, knower = grok.measure(table.label, table), grok.measure(table.truth, table)
    assert parrot["memorised"] == parrot["fitted"] == parrot["val"] == 1 and parrot["repaired"] == 0
    assert (
        knower["memorised"] == 0
        and knower["repaired"] == knower["clean"] == knower["accuracy"] == 1
    )
    assert knower["fitted"] == pytest.approx(1 - int(0.5 * n) / n)
    assert knower["val"] == pytest.approx(1 - int(0.5 * m) / m)
    said = table.truth.clone()
    said[n + m] += 1
    assert grok.measure(said, table)["accuracy"] == pytest.approx(1 - 1 / (49 - n - m))
    assert grok.measure(said, table)["val"] == knower["val"]


def test_of_the_training_cells_clean_and_repaired_make_the_truth():
    table = grok.make_table(11, 0.6, 0.5, 0.1, generator=generator())
    said = torch.randint(11, (121,), generator=generator(3))
    row, share = grok.measure(said, table), table.wrong.float().mean().item()
    expected = share * row["repaired"] + (1 - share) * row["clean"]
    assert row["truth"] == pytest.approx(expected)


# --- the paper's setting, and the exercises ------------------------------------------------------

NOTEBOOK = "Notebooks/Grokking_with_label_corruption.ipynb"
# What `--budget full` must be, and where it is said (files of the authors' repository).
PAPER = {
    "p": (97, NOTEBOOK),
    "width": (500, NOTEBOOK),
    "alpha": (0.5, NOTEBOOK),
    "xi": (0.35, NOTEBOOK),
    "steps": (1000, f"{NOTEBOOK}, no decay; the decayed runs are shorter"),
    "lr": (0.01, f"{NOTEBOOK}, AdamW"),
    "mild": (5.0, f"{NOTEBOOK}, partial inversion"),
    "decay": (15.0, f"{NOTEBOOK}, full inversion"),
    "excess": (20.0, f"{NOTEBOOK}, forgetting"),
    "excess_steps": (5000, f"{NOTEBOOK}, forgetting"),
    "batch": (64, f"{NOTEBOOK}, BatchNorm"),
}


def test_the_full_budget_is_the_papers_setting():
    assert_papers(full_budget("grokking"), PAPER)


def score(said, label, wrong):
    flagged = said != label
    return (flagged & wrong).sum().item(), flagged.sum().item(), wrong.sum().item()


def swapped(said, label, wrong):
    caught, flagged, lies = score(said, label, wrong)
    return caught / lies, caught / flagged


def by_flags(said, label, wrong):
    caught, flagged, _ = score(said, label, wrong)
    return caught / flagged, caught / flagged


def where_they_agree(said, label, wrong):
    flagged = said == label
    caught = (flagged & wrong).sum().item()
    return caught / flagged.sum().item(), caught / wrong.sum().item()


def powers(root):
    return lambda p: [pow(root(p), k, p) for k in range(p - 1)]


def row_of(change):
    def lie(table, r):
        label = table.truth.clone()
        row = table.a == r
        row[table.n :] = False
        return change(label, row, table)

    return lie


def without_modulus(label, row, table):
    return label + row.long()


def everywhere(label, row, table):
    return (label + (table.a == 4).long()) % table.p


def from_the_lies(label, row, table):
    return (table.label + row.long()) % table.p


def in_place(table, r):
    table.label[: table.n] = table.truth[: table.n] + (table.a[: table.n] == r).long()
    return table.label % table.p


WRONG = {
    "check_find": [
        (where_they_agree, "agree"),
        (swapped, "precision comes first"),
        (by_flags, "number of lies, not of flags"),
        (lambda said, label, wrong: (2, 1), "2/3, you say"),
    ],
    "check_powers": [
        (powers(lambda p: 4), "comes twice"),
        (powers(lambda p: {5: 3, 7: 5, 23: 7}[p]), "not the smallest"),
        (lambda p: [pow({5: 2, 7: 3, 23: 5}[p], k, p) for k in range(1, p)], "g\\^0 = 1"),
        (lambda p: list(range(1, p)), "not successive powers"),
        (lambda p: list(range(p)), "non-zero numbers"),
    ],
    "check_row": [
        (row_of(without_modulus), "remainder"),
        (row_of(everywhere), "beyond the first n cells"),
        (row_of(from_the_lies), "table.truth, not from table.label"),
        (row_of(lambda label, row, table: label), "one too large"),
        (in_place, "in place"),
    ],
}


@each(WRONG)
def test_typical_wrong_answers_are_named(name, k):
    assert_named("grokking", WRONG, name, k)
