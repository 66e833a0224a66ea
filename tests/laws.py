"""The laws with fewer counts of lanes and devices: each is a compilation, and fedmf tries the engine with all."""

from functools import partial

from fedjax_rec.testing import check_lanes, check_mesh, check_seeds

BRIEF = {
    "lanes": partial(check_lanes, counts=(3,)),
    "mesh": partial(check_mesh, counts=(8,)),
    "seeds": partial(check_seeds, by_vmap=False),
}
