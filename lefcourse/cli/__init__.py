"""The command `lefcourse`. Each command is the function `command` of the module of its name here."""

import importlib
import sys
from collections.abc import Sequence

import typer
from typer.exceptions import TyperException

from lefcourse.errors import DataError, UsageError, choice

# In the order of the help. To add a command, write its module and add its name.
COMMANDS = (
    "list",
    "run",
    "sweep",
    "compare",
    "reproduce",
    "tune",
    "results",
    "lab",
    "book",
    "doctor",
    "new",
)

HELP = """\
Learn with few, noisy, weak, partial or missing labels: 61 papers, one chapter each.

A chapter is a Jupyter notebook. It implements its paper's method from scratch, measures it beside
honest baselines, and checks the paper's claim on the numbers just measured. The default runs
download nothing and take at most a minute on two CPU cores.

\b
Examples:
  lefcourse list                            what there is, part by part
  lefcourse list --labels noisy             the chapters about labels that lie
  lefcourse run elr                         execute a chapter and sum up its result
  lefcourse run elr -p seed 7 -p rate 0.4   ... with other parameters
  lefcourse run elr -p dataset mnist        ... on real data
  lefcourse run elr --budget full           ... at the paper's scale, on a GPU
  lefcourse lab                             open the notebooks in JupyterLab
  lefcourse doctor                          what this machine has, and what it lacks

\b
Environment variables:
  LEFCOURSE_BUDGET   smoke (every line runs, nothing is judged), standard or full
  LEFCOURSE_DEVICE   auto (CUDA where there is one), cpu or cuda
  LEFCOURSE_DATA     folder of the real data sets (default: in the user's cache)
  LEFCOURSE_RUNS     folder of what is executed and measured (default: runs/ in a checkout, else
                     lefcourse-runs/ in the current folder)

Exit codes: 0 done, 1 failed, 2 not understood (one line says why), 130 interrupted.
"""

app = typer.Typer(
    help=HELP,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(help=HELP)
def _root() -> None:
    """Keep the commands below `lefcourse`, even if there were only one."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line `argv` (default: this process's) and return the exit code.

    Whatever was not understood is one line on stderr and code 2.
    """
    words = join_parameters(sys.argv[1:] if argv is None else argv) or ["--help"]
    try:
        if not words[0].startswith("-"):
            choice("command", words[0], COMMANDS)
        return app(words, prog_name="lefcourse", standalone_mode=False) or 0
    except UsageError as error:
        message = str(error)
    except DataError as error:
        print(f"lefcourse: {error}", file=sys.stderr)
        return 1
    except OSError as error:  # a full disk, a pipe that nobody reads, a folder that is not ours
        where = f": {error.filename}" if error.filename else ""
        print(f"lefcourse: {error.strerror or error}{where}", file=sys.stderr)
        return 1
    except TyperException as error:
        message = " ".join(error.format_message().split())
        if words[0] in COMMANDS:
            message += f" (see lefcourse {words[0]} --help)"
    print(f"lefcourse: {message}", file=sys.stderr)
    return 2


def join_parameters(words: Sequence[str]) -> list[str]:
    """Write every `-p name value` as `-p name=value`, the one form that the parser knows."""
    joined, rest = [], [*words]
    while rest:
        joined.append(rest.pop(0))
        if joined[-1] in ("-p", "--param") and rest:
            name = rest.pop(0)
            has_value = "=" not in name and rest and not rest[0].startswith(("-p", "--"))
            joined.append(f"{name}={rest.pop(0)}" if has_value else name)
    return joined


# At the end, because from here on `list` is the submodule of that name.
for _name in COMMANDS:
    app.command(_name)(importlib.import_module(f"{__name__}.{_name}").command)
