"""Whatever decides a run is compared when it goes on, whatever the engine's plan is."""

import shutil
from typing import Any

import jax
import optax
import pytest

import fedjax_rec as fr
from fedjax_rec.evaluation.evaluation_points import after_local_training
from fedjax_rec.training.checkpoints.manager import Checkpoints
from fedjax_rec.training.checkpoints.seal import list_files


def _toy(**settings):
    given = {"dim": 2, "cohort": 8, "lanes": 4, "learning_rate": 0.1} | settings
    return fr.fedmf(**given)


OTHER_RUNS: dict[str, tuple[dict[str, Any], str]] = {
    "a rate, and lanes": ({"algorithm": _toy(learning_rate=0.3, lanes=2)}, "one of its settings, is another"),
    "a start, and lanes": ({"algorithm": _toy(init_scale=3.0, lanes=2)}, "one of its settings, is another"),
    "a server's rule, and devices": (
        {"algorithm": _toy(server_optimizer=optax.sgd(0.5), mesh=fr.client_mesh(2))},
        "one of its settings, is another",
    ),
    "leaky negatives": ({"negatives": "paper-leaky"}, "negatives is 'train' in .* and 'paper-leaky' now"),
    "leaky clients": ({"leaky_clients": True}, "population is"),
    "a point": ({"point": True}, "point is 'server' in .* and 'local training"),
    "a start of one's own": ({"state": 1}, 'state is "the algorithm\'s own" in'),
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A split, and the folder of two rounds of a run on it."""
    split = fr.leave_one_out(fr.data.synthetic(num_users=30, num_items=60, seed=1), num_candidates=5)
    folder = tmp_path_factory.mktemp("begun") / "run"
    fr.simulate(_toy(), split, rounds=2, eval_every=1, checkpoint=Checkpoints(folder, every=1))
    return split, folder


@pytest.mark.parametrize("case", OTHER_RUNS)
def test_another_run_in_python_is_refused(begun, case):
    """Whatever decides a run is compared, also where the engine's plan differs; nothing is written."""
    split, folder = begun
    change, message = OTHER_RUNS[case]
    options: dict[str, Any] = {"rounds": 3, "eval_every": 1, "checkpoint": Checkpoints(folder, every=1)}
    algorithm = change.get("algorithm", _toy())
    key = jax.random.key(0)
    leaky = split._replace(negatives="paper-leaky")
    if "point" in change:
        options["point"] = after_local_training(algorithm, fr.population_of(split), key)
    if "state" in change:
        options["state"] = algorithm.init(jax.random.key(change["state"]), fr.population_of(split))
    if "leaky_clients" in change:
        options["population"] = fr.population_of(leaky)
    before = list_files(folder)
    with pytest.raises(ValueError, match=message):
        fr.simulate(algorithm, leaky if "negatives" in change else split, **options)
    assert list_files(folder) == before


def test_the_same_run_on_other_lanes_goes_on(begun, tmp_path):
    """The values are the same: a message says that the last bits may differ."""
    split, folder = begun
    copy = shutil.copytree(folder, tmp_path / "run")
    messages: list[str] = []
    kept = Checkpoints(copy, every=1, on_message=messages.append)
    state, _ = fr.simulate(_toy(lanes=2), split, rounds=3, eval_every=1, checkpoint=kept)
    assert int(state.round) > 0
    assert ["lanes is 4 in the checkpoint and 2 now" in text for text in messages] == [True]
