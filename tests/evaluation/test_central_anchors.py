"""What the central baselines must reach on real data, trained on everything but the test item."""

import pytest

import fedjax_rec as fr
from fedjax_rec.evaluation.central import run_baselines

PARTS = ("full", "sampled99")


def values(found, name):
    return [found[name].metrics[part][metric] for part in PARTS for metric in ("hr@10", "ndcg@10")]


@pytest.fixture(scope="module")
def ml_100k(shared_data):
    """All methods with settings chosen on validation, then refit."""
    split = fr.leave_one_out(fr.load_dataset("ml-100k", data_dir=shared_data))
    return run_baselines(split, refit=True)


@pytest.mark.thorough("a figure of a whole real set; central oracles equal numpy")
def test_ml_100k(ml_100k):
    """HR@10 and NDCG@10, full and sampled; the draw of candidates moves the sampled ones by .015."""
    assert values(ml_100k, "popularity")[:2] == pytest.approx([0.0859, 0.0443], abs=0.001)
    assert values(ml_100k, "popularity")[2:] == pytest.approx([0.4115, 0.2230], abs=0.015)
    assert values(ml_100k, "itemknn")[2:] == pytest.approx([0.6055, 0.3437], abs=0.02)
    assert values(ml_100k, "ease")[:2] == pytest.approx([0.139, 0.072], abs=0.006)
    assert values(ml_100k, "ease")[2:] == pytest.approx([0.6575, 0.3867], abs=0.015)
    full_hr, full_ndcg, hr, ndcg = values(ml_100k, "ials")
    assert min(full_hr - 0.14, full_ndcg - 0.07, hr - 0.65, ndcg - 0.38) >= 0
    full_hr, full_ndcg, hr, ndcg = values(ml_100k, "mf")
    assert min(full_hr - 0.13, full_ndcg - 0.065, hr - 0.65, ndcg - 0.37) >= 0
    assert values(ml_100k, "random")[2] == pytest.approx(0.100, abs=0.03)


@pytest.mark.thorough("a figure of a whole real set; central oracles equal numpy")
def test_closed_forms_on_ml_1m(shared_data):
    """Popularity and EASE with the official candidates, and ItemKNN's and EASE's full ranking."""
    split = fr.leave_one_out(fr.load_dataset("ml-1m-loo", data_dir=shared_data))
    found = run_baselines(
        split,
        names=["popularity", "itemknn", "ease"],
        refit=True,
        settings={"ease": {"regularisation": 1000.0}, "itemknn": {"neighbours": 100, "shrink": 10.0}},
    )
    assert values(found, "popularity")[2:] == pytest.approx([0.4538, 0.2545], abs=0.001)
    assert values(found, "ease")[2:] == pytest.approx([0.718, 0.451], abs=0.003)
    assert values(found, "itemknn")[2:] == pytest.approx([0.6596, 0.3900], abs=0.005)
    assert values(found, "itemknn")[:2] == pytest.approx([0.0816, 0.0409], abs=0.001)
