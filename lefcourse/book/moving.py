"""A knob of an executed copy, to be shown on another page."""

import re
from pathlib import Path

from lefcourse.chapter import notebook

KNOB = re.compile(r'<figure class="lef-knob".*?</figure>', re.DOTALL)


def knob(path: Path) -> str:
    """Return the first pre-rendered knob in the executed notebook at `path`, "" if there is none."""
    for cell in notebook.read(path).cells:
        for output in cell.outputs:
            if found := KNOB.search("".join(output.get("data", {}).get("text/html", ""))):
                return found[0]
    return ""
