"""The worlds, under the name that chapters use: `from lefcourse.worlds import shapes`."""

import sys

from lefcourse.science import worlds

sys.modules[__name__] = worlds
