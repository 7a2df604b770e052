"""Training and evaluation: equal to a loop written by hand, repeatable to the bit."""

import math
from copy import deepcopy
from functools import partial

import pytest
import torch
import torch.nn.functional as F

from lefcourse.errors import UsageError
from lefcourse.science import augment, data, evaluate, nets, training


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def digits():
    return data.load("digits")


@pytest.fixture
def net(digits):
    torch.manual_seed(0)
    return nets.convnet(1, 10, width=8, size=8)


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# Batches


def test_one_pass_visits_every_sample_once():
    parts = list(training.batches(23, 5, generator()))
    assert [len(i) for i in parts] == [5, 5, 5, 5, 3]
    assert sorted(torch.cat(parts).tolist()) == list(range(23))


def test_steps_cut_one_order_after_another():
    parts = list(training.batches(10, 4, generator(), steps=5))
    assert [len(i) for i in parts] == [4] * 5
    stream = torch.cat(parts)
    assert sorted(stream[:10].tolist()) == sorted(stream[10:].tolist()) == list(range(10))


def test_a_batch_may_be_larger_than_the_few_labels():
    parts = list(training.batches(3, 7, generator(), steps=3))
    assert [len(i) for i in parts] == [7] * 3
    assert torch.bincount(torch.cat(parts)).tolist() == [7, 7, 7]


def test_batches_repeat_with_the_seed():
    a, b, c = (torch.cat(list(training.batches(50, 8, generator(s)))) for s in (1, 1, 2))
    assert torch.equal(a, b) and not torch.equal(a, c)


# fit


def test_fit_is_the_loop_one_would_write(net, digits):
    x, y = digits.x_train[:200], digits.y_train[:200]
    by_hand = deepcopy(net)
    history = training.fit(net, x, y, epochs=2, lr=0.05, weight_decay=1e-3, generator=generator(3))

    g, opt = generator(3), torch.optim.SGD(by_hand.parameters(), 0.05, 0.9, weight_decay=1e-3)
    means = []
    for _ in range(2):
        total = 0.0
        for i in torch.randperm(200, generator=g).split(64):
            loss = F.cross_entropy(by_hand(x[i]), y[i])
            opt.zero_grad()
            loss.backward()
            opt.step()
            total += loss.item() * len(i)
        means.append(total / 200)
    assert torch.equal(weights(net), weights(by_hand))
    assert [h["epoch"] for h in history] == [1, 2] and [h["step"] for h in history] == [4, 8]
    assert [h["loss"] for h in history] == pytest.approx(means, rel=1e-5)


@pytest.mark.parametrize(
    "options",
    [
        {"epochs": 2},
        {"steps": 7, "schedule": "cosine"},
        {"epochs": 1, "optimizer": "adam", "lr": 1e-3},
        {"epochs": 1, "augment": lambda x, g: augment.shift(x, 1, generator=g)},
    ],
)
def test_fit_repeats_to_the_bit(net, digits, options):
    other = deepcopy(net)
    runs = [
        training.fit(m, digits.x_train, digits.y_train, generator=generator(1), **options)
        for m in (net, other)
    ]
    assert torch.equal(weights(net), weights(other)) and runs[0] == runs[1]


def test_steps_are_counted_and_recorded(net, digits):
    x, y = digits.x_train[:100], digits.y_train[:100]
    history = training.fit(net, x, y, steps=5, batch=50, generator=generator())
    assert [h["step"] for h in history] == [2, 4, 5]


def test_cosine_ends_at_zero(digits):
    """The last step of a cosine over n steps has the learning rate lr (1 + cos(pi (n-1) / n)) / 2."""
    model = torch.nn.Linear(1, 2, bias=False)
    torch.nn.init.zeros_(model.weight)
    x, y = torch.ones(4, 1), torch.zeros(4, dtype=torch.long)
    linear = lambda logits, _: -logits[:, 0].mean()  # noqa: E731, its gradient is always -1
    training.fit(model, x, y, steps=4, lr=1.0, momentum=0, loss=linear, schedule="cosine")
    expected = sum((1 + torch.tensor(torch.pi * k / 4).cos()) / 2 for k in range(4))
    torch.testing.assert_close(model.weight[0, 0].detach(), expected)


def test_callback_joins_the_history_and_may_evaluate(net, digits):
    modes = []

    def each_epoch(epoch, model):
        score = evaluate.accuracy(model, digits.x_val, digits.y_val)
        modes.append(model.training)
        model.eval()
        return {"val": score, "seen": epoch}

    plain = deepcopy(net)
    history = training.fit(
        net, digits.x_train, digits.y_train, epochs=2, generator=generator(), each_epoch=each_epoch
    )
    assert [h["seen"] for h in history] == [1, 2] and modes == [True, True]
    training.fit(plain, digits.x_train, digits.y_train, epochs=2, generator=generator())
    assert torch.equal(weights(net), weights(plain)), "watching must not change the training"


def test_soft_targets_and_other_losses(net, digits):
    hard, soft = deepcopy(net), deepcopy(net)
    x, y = digits.x_train[:64], digits.y_train[:64]
    training.fit(hard, x, y, epochs=1, generator=generator())
    training.fit(soft, x, F.one_hot(y, 10).float(), epochs=1, generator=generator())
    torch.testing.assert_close(weights(hard), weights(soft), atol=1e-5, rtol=1e-4)
    smooth = partial(F.cross_entropy, label_smoothing=0.1)
    training.fit(net, x, y, epochs=1, loss=smooth, generator=generator())
    assert not torch.equal(weights(net), weights(hard))


def test_fit_shows_progress_without_changing_anything(net, digits):
    other = deepcopy(net)
    training.fit(net, digits.x_train, digits.y_train, epochs=1, generator=generator())
    training.fit(
        other, digits.x_train, digits.y_train, epochs=1, generator=generator(), progress="digits"
    )
    assert torch.equal(weights(net), weights(other))


def test_fit_learns_digits(digits):
    torch.manual_seed(0)
    model = nets.build("convnet", digits)
    training.fit(
        model, digits.x_train, digits.y_train, epochs=15, schedule="cosine", generator=generator()
    )
    assert evaluate.accuracy(model, digits.x_test, digits.y_test) > 0.96


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"epochs": 1, "steps": 1},
        {"epochs": 1, "optimizer": "sdg"},
        {"epochs": 1, "schedule": "cos"},
    ],
)
def test_fit_refuses_what_it_does_not_know(net, digits, options):
    with pytest.raises(UsageError):
        training.fit(net, digits.x_train, digits.y_train, **options)


# Evaluation


def test_predictions_do_not_depend_on_the_batch_and_the_mode_is_restored(net, digits):
    net.train()
    a, b = (evaluate.predict(net, digits.x_test, batch) for batch in (1024, 37))
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    assert net.training and not a.requires_grad
    net.eval()
    evaluate.predict(net, digits.x_test)
    assert not net.training


LOGITS = torch.tensor([[2.0, 0, 0], [2.0, 0, 0], [0, 2.0, 0], [0, 0, 2.0]])
TRUE = torch.tensor([0, 1, 1, 2])


def test_scores_on_four_samples():
    model = torch.nn.Identity()
    assert evaluate.accuracy(model, LOGITS, TRUE) == 0.75
    assert evaluate.confusion(LOGITS, TRUE).tolist() == [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    assert evaluate.macro_f1(LOGITS, TRUE) == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)


def test_mean_average_precision_skips_labels_without_a_positive():
    scores = torch.tensor([[0.9, 0.1, 0.5], [0.8, 0.7, 0.5], [0.1, 0.9, 0.5]])
    targets = torch.tensor([[1, 1, 0], [0, 0, 0], [1, 0, 0]])
    expected = ((1 + 2 / 3) / 2 + 1 / 3) / 2
    assert evaluate.mean_average_precision(scores, targets) == pytest.approx(expected)


def test_calibration_error_of_constant_confidence():
    confidence = LOGITS.softmax(1).max(1).values[0].item()
    expected = abs(confidence - 0.75)
    assert evaluate.calibration_error(LOGITS, TRUE) == pytest.approx(expected, abs=1e-6)


def test_a_network_that_diverges_is_noticed(digits):
    net = nets.mlp((1, 8, 8), 10)
    x, y = digits.x_train[:64], digits.y_train[:64]
    with pytest.warns(RuntimeWarning, match="^cross-entropy has diverged: in pass") as warned:
        history = training.fit(net, x, y, epochs=5, lr=1e30, progress="cross-entropy")
    assert len(history) == 5
    assert len(warned) == 1
    assert evaluate.diverged(net)
    assert evaluate.diverged(evaluate.predict(net, x))
    assert math.isnan(evaluate.accuracy(net, x, y))
