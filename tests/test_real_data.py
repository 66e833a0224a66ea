"""What the defaults must reach on real data. Quality only: no timing stands in a test."""

import json

import jax
import numpy as np
import pytest

import fedjax_rec as fr
from fedjax_rec.cli.main import main


@pytest.fixture(scope="module")
def ml_100k(shared_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("ml-100k") / "run"
    main(
        ["run", "--dataset", "ml-100k", "--data-dir", str(shared_data), "--algorithm", "fedmf",
         "--rounds", "200", "--seed", "0", "--out", str(folder)]
    )  # fmt: skip
    return json.loads((folder / "result.json").read_text())


@pytest.mark.thorough("a figure of a whole real set; rounds equal the reference")
def test_ml_100k_with_defaults(ml_100k):
    """Validation held out: at least .635 / .365 sampled and .125 / .062 full; Popularity at .41 / .223."""
    test, popularity = ml_100k["metrics"]["test"], ml_100k["baselines"]["popularity"]
    assert test["sampled99"]["hr@10"] >= 0.635
    assert test["sampled99"]["ndcg@10"] >= 0.365
    assert test["full"]["hr@10"] >= 0.125
    assert test["full"]["ndcg@10"] >= 0.062
    assert popularity["sampled99"]["hr@10"] == pytest.approx(0.4115, abs=0.02)
    assert popularity["sampled99"]["ndcg@10"] == pytest.approx(0.2230, abs=0.01)


def test_lane_efficiency_on_ml_1m(shared_data):
    """At least .90 with a cohort of 1,000 on ML-1M, and one compilation."""
    split = fr.leave_one_out(fr.load_dataset("ml-1m-loo", data_dir=shared_data))
    algorithm = fr.fedmf(dim=4, cohort=1000)
    _, history = fr.simulate(algorithm, fr.population_of(split), rounds=3, eval_every=2)
    assert history.lane_efficiency >= 0.90
    assert history.num_compilations == 1


def test_ml_1m_pairs_that_bite(shared_data):
    """The longest client has its whole history trained: no truncation hides in the lanes."""
    split = fr.leave_one_out(fr.load_dataset("ml-1m-loo", data_dir=shared_data))
    population = fr.population_of(split)
    longest = int(np.argmax(np.diff(split.offsets)))
    algorithm, key = fr.fedmf(dim=2), jax.random.key(0)
    state = algorithm.init(key, population)
    update = fr.client_update(algorithm, key, state, population, longest)
    own = split.items[split.offsets[longest] : split.offsets[longest + 1]]
    assert set(own.tolist()) <= set(update.ids.tolist())
