"""Print how fast the world of shapes is drawn. Run by `make bench`."""

import statistics
import time
from collections.abc import Callable

from lefcourse.science.worlds import shapes

LABELS = [
    "image",
    "boxes",
    "masks",
    "semantic",
    "panoptic",
    "alpha",
    "depth",
    "keypoints",
    "captions",
    "attributes",
]


def seconds(work: Callable, repeats: int = 5) -> float:
    """Return the median time of `work` in seconds, after one call that is not counted."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def everything() -> None:
    """Draw 64 scenes and compute every label."""
    world = shapes.make(64, objects=(2, 6), size=96, style="mixed")
    for label in LABELS:
        getattr(world, label)


def main() -> None:
    for style in shapes.STYLES:
        took = seconds(lambda style=style: shapes.classification(10_000, style=style))
        print(f"10,000 single shapes at 32x32, {style:6}     {took:6.2f} s   (at most 3)")
    print(
        f"64 scenes at 96x96 with all labels         {seconds(everything):6.2f} s   (at most 0.5)"
    )


if __name__ == "__main__":
    main()
