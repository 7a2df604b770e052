"""Masked pre-training for two dimensions: order of tokens, what hidden patches may reveal, what a step moves.

Brief sources: paper (abstract; tables not verified) and the history of Davidczy/Uni4Eye_pp (models_mae.py at commit
a7bcfac, PatchEmbed23D.py, main_pretrain_partial23D.py).
"""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from exercise_checks import assert_named, assert_papers, each, full_budget

import lefcourse as lc

m = lc.methods("uni4eye")
SIZE, DEPTH, P, D = 16, 12, 4, 24
SHAPES = {2: (3, SIZE, SIZE), 3: (1, DEPTH, DEPTH, DEPTH)}


def draws(seed=0):
    return torch.Generator().manual_seed(seed)


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=draws(seed))


def model(seed=0):
    torch.manual_seed(seed)
    return m.Uni4Eye(SIZE, DEPTH, P, D, blocks=2, heads=3, mlp=2, decoder=(24, 1, 3))


def images(k, n=3, seed=0):
    """Images and gradient maps of one kind, and an order of their patches."""
    x = drawn(n, *SHAPES[k], seed=seed)
    patches = math.prod(s // P for s in SHAPES[k][1:])
    return x, m.gradient_map(x), torch.rand(n, patches, generator=draws(seed)).argsort(1)


KINDS = pytest.mark.parametrize("k", [2, 3])


# --- patches and positions -------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 8, 16), (1, 8, 16, 24)])
def test_unpatchify_inverts_patchify(shape):
    x = drawn(2, *shape)
    assert m.unpatchify(m.patchify(x, 4), 4, shape).equal(x)


@pytest.mark.parametrize("shape", [(3, 8, 16), (1, 8, 16, 24)])
def test_patches_stand_in_the_order_of_the_convolution(shape):
    """A convolution with kernel and stride p is a linear map of `patchify`, token by token."""
    x, k = drawn(2, *shape), len(shape) - 1
    weight = drawn(5, shape[0], *[4] * k, seed=1)
    conv = (F.conv2d if k == 2 else F.conv3d)(x, weight, stride=4)
    tokens = m.patchify(x, 4) @ weight.flatten(1).T
    assert torch.allclose(tokens, conv.flatten(2).transpose(1, 2), atol=1e-4)


def test_one_bright_voxel_lies_in_its_token():
    x = torch.zeros(1, 1, 8, 16, 24)
    x[0, 0, 5, 2, 9] = 1.0  # second of 2 layers, first of 4 rows, third of 6 columns
    patches = m.patchify(x, 4)
    assert patches.sum(2).nonzero().tolist() == [[0, 1 * 24 + 0 * 6 + 2]]
    assert patches[0, 26].argmax() == 1 * 16 + 2 * 4 + 1


def test_positions_tell_all_places_apart_in_every_dimension():
    for counts, d in [((6, 6), 48), ((3, 3, 3), 48), ((2, 3, 4), 50)]:
        table = m.positions(counts, d)
        assert table.shape == (math.prod(counts), d)
        apart = torch.cdist(table, table) + 9 * torch.eye(len(table))
        assert apart.min() > 0.1
    # Channels that do not divide among sines and cosines of three axes stay zero.
    assert (m.positions((2, 3, 4), 50)[:, 48:] == 0).all()


def test_positions_are_sines_and_cosines_of_each_axis():
    table, counts, each = m.positions((2, 3, 4), 12), (2, 3, 4), 2
    for place, at in enumerate(torch.cartesian_prod(*[torch.arange(n) for n in counts]).tolist()):
        row = []
        for value in at:
            angles = [value * 10_000 ** (-j / each) for j in range(each)]
            row += [math.sin(w) for w in angles] + [math.cos(w) for w in angles]
        assert table[place].tolist() == pytest.approx(row, abs=1e-5)


def test_a_volume_of_equal_slices_has_the_flat_tokens():
    net = m.Encoder(SIZE, DEPTH, P, D, 1, 3, 2)
    with torch.no_grad():
        net.embed2.weight[:, 1:] = 0  # one colour, like a volume
        net.embed3.weight.copy_(net.embed2.weight[:, :1, None].expand(-1, -1, P, -1, -1) / P)
        net.embed3.bias.copy_(net.embed2.bias)
        net.places2, net.places3 = torch.zeros(()), torch.zeros(())
        x = drawn(2, 3, 12, 12)
        volume = x[:, :1, None].expand(-1, -1, P, -1, -1)
        assert torch.allclose(net.embed(x), net.embed(volume), atol=1e-5)


# --- gradient map ----------------------------------------------------------------------------------


@KINDS
def test_the_slope_of_a_ramp_is_one(k):
    side = torch.arange(12.0)
    for axis in range(k):
        ramp = side.view([12 if a == axis else 1 for a in range(k)]).expand([12] * k)
        inner = m.gradient_map(ramp[None, None])[0, 0][(slice(3, -3),) * k]
        assert torch.allclose(inner, torch.full_like(inner, 1 / k), atol=1e-5), axis
    assert m.gradient_map(torch.ones(1, 1, *[12] * k)).abs().max() < 1e-6  # no edge at the border
    assert m.gradient_map(drawn(2, *SHAPES[k])).shape == (2, 1, *SHAPES[k][1:])


@KINDS
def test_flips_commute_with_the_gradient_map(k):
    x = drawn(2, *SHAPES[k])
    for axis in range(2, 2 + k):
        assert torch.allclose(m.gradient_map(x.flip(axis)), m.gradient_map(x).flip(axis), atol=1e-6)


def test_the_flat_map_is_the_sobel_filter_of_the_grey_picture():
    x = drawn(1, 3, 9, 9)
    grey = 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2]
    sobel = torch.outer(torch.tensor([1.0, 4, 6, 4, 1]), torch.tensor([-1.0, -2, 0, 2, 1])) / 128
    window = grey[0, 2:7, 3:8]
    by_hand = 0.5 * ((window * sobel).sum().abs() + (window * sobel.T).sum().abs())
    assert m.gradient_map(x)[0, 0, 4, 5].item() == pytest.approx(by_hand.item(), abs=1e-5)


# --- masking and loss ------------------------------------------------------------------------------


@pytest.mark.parametrize(("ratio", "seen"), [(0.5, 8), (0.75, 4), (0.3, 11)])
def test_the_first_of_the_order_stay_visible(ratio, seen):
    order = torch.rand(2, 16, generator=draws()).argsort(1)
    visible, hidden = m.hide(order, ratio)
    assert visible.equal(order[:, :seen])
    assert (hidden.gather(1, visible) == 0).all() and (hidden.sum(1) == 16 - seen).all()


@KINDS
def test_the_loss_is_a_loop_over_hidden_patches(k):
    net, (x, gradient, order) = model(), images(k)
    visible, hidden = m.hide(order, 0.5)
    total = 0.0
    for predict, target in zip(net.branches(x, visible), (x, gradient), strict=True):
        e = ((predict() - m.patchify(target, P)) ** 2).mean(2)
        total += sum(
            float(e[b, i]) for b in range(3) for i in range(e.shape[1]) if hidden[b, i]
        ) / float(hidden.sum())
    assert m.uni4eye_loss(net, x, gradient, order).item() == pytest.approx(total, rel=1e-4)


def test_visible_patches_do_not_count():
    predicted, target = drawn(2, 6, 5).requires_grad_(), drawn(2, 6, 5, seed=1)
    hidden = torch.tensor([[0.0, 1, 1, 0, 1, 0], [1, 0, 1, 0, 0, 1]])
    error = m.masked_error(predicted, target, hidden)
    (grad,) = torch.autograd.grad(error, predicted)
    assert (grad[hidden == 0] == 0).all() and (grad[hidden == 1] != 0).all()
    moved = target + 9 * (1 - hidden)[..., None]
    assert m.masked_error(predicted, moved, hidden).equal(error)
    assert not m.masked_error(predicted, target + hidden[..., None], hidden).equal(error)


@KINDS
def test_hidden_pixels_cannot_leak(k):
    net, (x, _, order) = model().encoder, images(k)
    visible, hidden = m.hide(order, 0.5)
    noise = hidden[..., None] * m.patchify(drawn(*x.shape, seed=5), P)
    other = x + m.unpatchify(noise, P, SHAPES[k])
    with torch.no_grad():
        assert net(other, visible).equal(net(x, visible))
        assert not net(other).equal(net(x))
        assert net(x, visible).shape == (3, 1 + visible.shape[1], D)


@KINDS
def test_without_the_gradient_branch_it_is_a_plain_masked_autoencoder(k):
    net, (x, gradient, order) = model(), images(k)
    visible, hidden = m.hide(order, 0.5)
    m.uni4eye_loss(net, x, gradient, order, weights=(1, 0)).backward()
    here = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
    plain = copy.deepcopy(net)
    plain.zero_grad()
    said = plain.image(plain.encoder(x, visible), visible, k == 2, plain.norm)
    m.masked_error(said, m.patchify(x, P), hidden).backward()
    there = {n: p.grad for n, p in plain.named_parameters() if p.grad is not None}
    assert here.keys() == there.keys() and not any(n.startswith("gradient") for n in here)
    assert all(torch.allclose(here[n], there[n], atol=1e-6) for n in here)


@KINDS
def test_the_gradient_branch_reaches_the_encoder(k):
    net, (x, gradient, order) = model(), images(k)
    m.uni4eye_loss(net, x, gradient, order, weights=(0, 1)).backward()
    assert net.encoder.blocks[0].qkv.weight.grad.abs().sum() > 0
    assert all(p.grad is None for n, p in net.named_parameters() if n.startswith("image"))


@KINDS
def test_positions_in_the_decoder_tell_hidden_patches_apart(k):
    net, (x, _, order) = model(), images(k)
    visible, hidden = m.hide(order, 0.5)
    for zero in (False, True):
        if zero:  # as in the released file
            net.image.places2.zero_(), net.image.places3.zero_()
        with torch.no_grad():
            said = net.branches(x, visible)[0]()
        spread = max(float(said[b][hidden[b] == 1].std(0).max()) for b in range(3))
        assert spread < 1e-5 if zero else spread > 1e-3


# --- one step --------------------------------------------------------------------------------------


@KINDS
def test_a_step_moves_what_is_shared_and_leaves_the_other_dimension(k):
    net, (x, gradient, order) = model(), images(k)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-2, weight_decay=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        before = {n: p.detach().clone() for n, p in net.named_parameters()}
        m.uni4eye_loss(net, x, gradient, order).backward()
        optimizer.step()
    moved = {n for n, p in net.named_parameters() if not p.equal(before[n])}
    other = 5 - k
    theirs = [f"encoder.embed{other}.", f"image.out{other}.", f"gradient.out{other}."]
    assert not [n for n in moved if any(n.startswith(start) for start in theirs)]
    assert all(p.grad is None for n, p in net.named_parameters() if n.startswith(tuple(theirs)))
    for own in (f"encoder.embed{k}.weight", "encoder.blocks.0.qkv.weight", "norm.weight"):
        assert own in moved


def test_the_reader_takes_mean_and_maximum_of_the_patches():
    torch.manual_seed(0)
    net = m.Reader(m.Encoder(SIZE, DEPTH, P, D, 1, 3, 2), 4)
    for k in (2, 3):
        x = drawn(3, *SHAPES[k])
        tokens = net.encoder(x)[:, 1:]
        want = torch.cat([tokens.mean(1), tokens.max(1).values], 1)
        assert torch.allclose(net.features(x), want) and net(x).shape == (3, 4)


# --- exercises and budget --------------------------------------------------------------------------


def embed(x, flat, deep, stride=None, bias=True, last=True, columns=False):
    weight, b = flat if x.ndim == 4 else deep
    conv = F.conv2d if x.ndim == 4 else F.conv3d
    y = conv(x, weight, b if bias else None, stride=stride or weight.shape[-1])
    y = (y.transpose(-1, -2) if columns else y).flatten(2)
    return y.transpose(1, 2) if last else y


def flat_only(x, flat, deep):
    return embed(x if x.ndim == 4 else x.mean(2), flat, deep)


def summed(x, flat, deep):
    return embed(x, flat, (deep[0] * 4, deep[1]))


def backwards(x, flat, deep):
    return embed(x if x.ndim == 4 else x.transpose(2, 3), flat, (deep[0], deep[1]))


def entropy(patches, bins=16, width=None, log=math.log(2), share=True, sign=-1, clamp=True):
    cell = (patches * (width or bins)).long()
    cell = cell.clamp(0, bins - 1) if clamp else cell
    q = F.one_hot(cell, bins).float()
    q = q.mean(2) if share else q.sum(2)
    return sign * torch.xlogy(q, q).sum(2) / log


def coins(steps, how, g):
    if how == "random":
        return (2 + (torch.rand(2 * steps, generator=g) < 0.5).long()).tolist()
    return [2, 3] * steps if how == "alternate" else [2] * steps + [3] * steps


def ordered(alternate=None, first=None, random=None):
    """A schedule with one of the three done otherwise."""

    def attempt(steps, how, g):
        if how == "alternate":
            return alternate(steps) if alternate else [2, 3] * steps
        kinds = torch.tensor([2] * steps + [3] * steps)
        if how == "first 2":
            return first(steps) if first else kinds.tolist()
        if random:
            return random(kinds)
        return kinds[torch.randperm(2 * steps, generator=g)].tolist()

    return attempt


WRONG = {
    "check_embed": [
        (lambda *a: embed(*a, last=False), "tokens come first"),
        (lambda *a: embed(*a, stride=1), "patches do not overlap"),
        (lambda *a: embed(*a, bias=False), "bias is missing"),
        (lambda *a: embed(*a, columns=True), "not column by column"),
        (lambda *a: 2 * embed(*a), "not the patches' tokens"),
        (summed, "alike in every slice"),
        (flat_only, "token 8"),
        (backwards, "alike in every slice|token 8"),
    ],
    "check_patch_entropy": [
        (lambda q, bins: entropy(q, bins, width=1, clamp=False), "0 everywhere"),
        (lambda q, bins: entropy(q, bins, log=1.0), "those are nats"),
        (lambda q, bins: entropy(q, bins, sign=1), "not negative"),
        (lambda q, bins: entropy(q, bins, share=False, sign=1), "counts are not probabilities"),
        (lambda q, bins: entropy(q, bins).mean(1), "one number a patch"),
        (lambda q, bins: entropy(q, 4), "16 values in 16 bins"),
        (lambda q, bins: entropy(q, bins) / 4, "two: 1 bit"),
    ],
    "check_schedule": [
        (coins, "independent coins"),
        (ordered(alternate=lambda n: ([2, 3] * n)[:n]), "twice as many in all"),
        (ordered(alternate=lambda n: [3, 2] * n), "alternate: 2, 3"),
        (ordered(first=lambda n: [3] * n + [2] * n), "photographs come first"),
        (ordered(first=lambda n: [2, 3] * n), "first all the 2s"),
        (ordered(random=lambda kinds: kinds.tolist()), "draw from the generator"),
        (ordered(random=lambda kinds: kinds[torch.randperm(100)].tolist()), "the same generator"),
    ],
}


@each(WRONG)
def test_checks_name_the_mistake(name, k):
    assert_named("uni4eye", WRONG, name, k, math=math)


# What `--budget full` must be, and where it is said.
PAPER = {
    "p": (16, "models_mae.py"),
    "size": (224, "main_pretrain_partial23D.py"),
    "d": (1024, "ViT-L, the successor's script"),
    "blocks": (24, "ViT-L"),
    "heads": (16, "ViT-L"),
    "mlp": (4, "ViT-L"),
    "decoder": ([512, 8, 16], "models_mae.py: width, blocks, heads of each decoder"),
    "ratio": (0.5, "the successor's loop; the model's default is 0.75"),
    "batch": ([64, 8], "the successor's script: a volume batch is 1/8 of a picture batch"),
    "weight_decay": (0.05, "the successor's script"),
    "warm_up": (0.2, "the successor's script: 40 of 200 epochs"),
    "steps": (3_750, "200 epochs of 1,200 pictures in batches of 64"),
}


def test_the_full_budget_is_the_papers_setting():
    assert_papers(full_budget("uni4eye"), PAPER)
    assert full_budget("uni4eye")["steps"] == 200 * 1200 / 64
