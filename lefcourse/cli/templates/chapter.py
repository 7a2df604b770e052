# The skeleton that `lefcourse new` fills in from the catalogue and writes as a notebook; what stands
# above the first cell is dropped.
# ruff: noqa: E402

# %% [markdown] tags=["section:title"]
# # {{short}}: TODO the idea in a few words
#
# {{authors}}, *{{title}}*, {{venue}}{{arxiv}} {cite}`{{key}}`
#
# **In one line**: {{idea}}
#
# **Labels it assumes**: {{labels}}
#
# After this chapter you will be able to
# - TODO three things the reader will be able to do
#
# **Time**: TODO minutes to read; the measured run time is printed by the last cell.

# %% tags=["install", "remove-cell"]
# Installs the course where it is absent, as in Colab. Where it is installed, this does nothing.
import importlib.util
import subprocess
import sys

if importlib.util.find_spec("lefcourse") is None:
    course = "git+https://github.com/lefcourse/lefcourse"
    subprocess.run([sys.executable, "-m", "pip", "install", "--quiet", course], check=True)
    importlib.invalidate_caches()

# %% [markdown] tags=["section:parameters"]
# ## Parameters
#
# Change them here and run all cells, or from the command line: `lefcourse run {{slug}} -p seed 1`.

# %% tags=["parameters"]
seed = 0  # every random draw of this run comes from it: data split, corruption, initial weights
device = "auto"  # auto | cpu | cuda: auto takes CUDA where there is one
dataset = "digits"  # digits | mnist | imagefolder:PATH: where the images come from
epochs = 20  # at least 1: passes over the training data, the same for every arm

# %% tags=["setup"]
import lefcourse as lc

run = lc.Run("{{slug}}", globals(), smoke=dict(epochs=1), full=dict(dataset="mnist", epochs=100))

# %% [markdown] tags=["section:problem"]
# ## TODO the problem, as a question
#
# TODO See the data and the labels. Run the obvious baseline. See how it fails.

# %%
data = lc.load(dataset, seed=seed, device=run.device)

# %% tags=["figure"]
figure = lc.plot.samples(data.x_train[:20], data.y_train[:20], data.classes)
lc.show(figure, alt="TODO what the picture shows", caption="TODO what to see in it.")

# %% [markdown] tags=["section:method"]
# ## TODO the method, by its idea
#
# TODO One formula, then the code right under it; names and symbols are the paper's.
#
# $$ \mathcal{L}(\theta) = \frac{1}{n} \sum_{i=1}^{n} \ell\bigl(f_\theta(x_i), y_i\bigr) $$

# %% tags=["method"]
import torch
import torch.nn.functional as F


def loss(logits: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """TODO Return the loss of a batch: logits (B, K), labels (B,) -> scalar."""
    return F.cross_entropy(logits, y)


# %% [markdown]
# TODO The training loop of the method, in sight.


# %% tags=["method"]
def train(model, x, y, epochs: int, generator: torch.Generator | None = None):
    """TODO Train `model` on images x (N, C, H, W) with labels y (N,); return it."""
    raise NotImplementedError("TODO")


# %% [markdown] tags=["section:experiment"]
# ## TODO the experiment
#
# TODO Baseline, strong alternative, method, oracle: same backbone, same budget, same care.

# %%
run.arm("TODO cross-entropy", "baseline", accuracy=float("nan"))

# %%
run.arm("TODO what a practitioner would use", "alternative", accuracy=float("nan"))

# %%
run.arm("{{short}}", "method", accuracy=float("nan"))

# %%
run.arm("clean labels", "oracle", accuracy=float("nan"))

# %% [markdown] tags=["section:results"]
# ## TODO what happened
#
# TODO Two to four figures that explain; the gap closed beside its recorded interval; one ablation.

# %%
closed = run.gap_closed("accuracy")
lc.say(f"{{short}} closed **{closed:.0%}** of the gap." if closed else "There was no gap to close.")

# %% tags=["figure"]
figure = lc.plot.gap_closed(run, "accuracy", lc.results.load("{{slug}}"))
lc.show(figure, alt="TODO what the picture shows", caption="TODO what to see in it.")

# %% [markdown] tags=["section:knob"]
# ## TODO turn a knob
#
# TODO Which parameter, what to expect, what its original value is.


# %% tags=["knob"]
def draw(rate):
    """TODO Draw what the knob changes."""
    figure, _axis = lc.plot.plt.subplots()
    return figure


lc.explore(draw, alt="TODO the picture", caption="TODO what changes.", rate=[0.0, 0.2, 0.4])

# %% [markdown] tags=["section:claim"]
# ## TODO the claim
#
# TODO What the paper claims, in words; what would count as holding here.

# %% tags=["claim"]
run.claim(
    "TODO the claim in one sentence",
    measured=run.record["arms"]["{{short}}"]["accuracy"],
    relation=">=",
    threshold=0.0,  # TODO
    paper="TODO what the paper reports, and in which table",
)

# %% [markdown] tags=["section:full-size"]
# ## At full size
#
# TODO The paper's settings and numbers; what the miniature cannot show; what was left out.
#
# ```
# lefcourse run {{slug}} --budget full
# ```

# %% [markdown] tags=["section:exercises"]
# ## Exercises
#
# ### 1. TODO the task (easy, 10 minutes)
#
# TODO What to write, and what it must fulfil. Write it in the cell below, then run the check.


# %% tags=["exercise"]
def smooth(y, k: int, eps: float):
    """Return the label-smoothed targets (B, K) of labels y (B,)."""
    raise NotImplementedError("your turn")


# %% tags=["check"]
@lc.checker
def check_smooth(smooth):
    """TODO Name the probable mistake in each assertion."""
    t = smooth(torch.tensor([0, 1]), k=4, eps=0.2)
    assert torch.allclose(t.sum(1), torch.ones(2)), "the targets of an image must sum to one"
    assert torch.isclose(t[0, 0], torch.tensor(0.85)), "the true class too gets its share eps / K"


check_smooth(smooth)


# %% tags=["solution", "hide-cell"] jupyter={"source_hidden": true}
def smooth(y, k: int, eps: float):
    """Return the label-smoothed targets (B, K) of labels y (B,)."""
    # solution
    return (1 - eps) * F.one_hot(y, k) + eps / k
    # end of solution


check_smooth(smooth, strict=True)

# %% [markdown]
# The record is closed here: how long this run took, and how much memory.

# %%
run.finish()

# %% [markdown] tags=["section:references"]
# ## References
#
# ```{bibliography}
# :filter: docname in docnames
# ```
