"""What the environment decides: the budget and the device's name. No torch in here."""

import os

from lefcourse.errors import choice

BUDGETS = ("smoke", "standard", "full")
DEVICES = ("auto", "cpu", "cuda")


def budget_name() -> str:
    """Return the budget in force: `LEFCOURSE_BUDGET`, `standard` by default."""
    return choice("budget", os.environ.get("LEFCOURSE_BUDGET") or "standard", BUDGETS)
