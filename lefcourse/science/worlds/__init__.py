"""Generated worlds: data with full ground truth, seeded, vectorised, on the device.

A world is one module here and one entry in `WORLDS`. Nothing else needs to know it: `lc.worlds.NAME`, the
list of what can be loaded, what a recorded result depends on and the book's page about the data read this table.
"""

import importlib
from dataclasses import dataclass


@dataclass(frozen=True)
class World:
    """What the course knows of a world without importing it.

    One that `loads` is image classification, and `lc.load(name)` knows it: its module has `classification(n, seed,
    device, size)`, images (n, C, size, size) and labels (n,), `CLASSES`, and `COUNTS`, the images of train, val and
    test that are drawn if nobody asks for another number. Others are used by their own functions alone.
    """

    about: str
    loads: bool = False


WORLDS = {
    "shapes": World(
        "Procedural scenes. One description of a scene (shapes, colours, textures, places, depth) gives the picture "
        "and, exactly, its class, super-class, attributes, caption, boxes, masks, panoptic map, matte, keypoints and depth.",
        loads=True,
    ),
    "scenes": World(
        "Several objects of `shapes` in each picture, all of different classes: the set of these is the label. How much shows of each is known, "
        "so that labels can be lost at random, or the small and hidden ones first; a long tail is a parameter."
    ),
    "graphs": World(
        "Networks of nodes with a few words each: stochastic block models whose classes, homophily and degrees you choose, "
        "the karate club, and the citation graphs Cora and CiteSeer where their files are."
    ),
    "volumes": World(
        "Patients: scans of a heart, slice by slice or whole, with the class of every voxel; how much patients differ is a parameter."
    ),
    "retina": World(
        "Eyes: one anatomy, seen as a fundus photograph (2-D) or as an OCT volume (3-D); healthy, or with drusen, bleeding or glaucoma of known severity."
    ),
    "lidar": World(
        "Range scans of street objects: the side of a car, a cyclist or a tree that a laser scanner sees, as 128 points; fewer of them are distinct the farther it is."
    ),
}


def __getattr__(name: str):
    if name in WORLDS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"there is no world {name!r}: {', '.join(WORLDS)}")
