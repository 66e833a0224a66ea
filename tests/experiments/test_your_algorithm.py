"""The skeleton keeps all laws, learns, and its README runs."""

import re
from pathlib import Path

import pytest

import fedjax_rec as fr
from experiments.your_algorithm import algorithm as skeleton
from fedjax_rec.data.synthetic import synthetic
from fedjax_rec.testing import LAWS, tiny_population
from tests.laws import BRIEF

README = Path(skeleton.__file__).with_name("README.md")


@pytest.fixture(scope="module")
def population():
    return tiny_population()


def make(**federation):
    return skeleton.your_algorithm(**({"dim": 3, "batch_size": 10, "cohort": 12} | federation))


@pytest.mark.parametrize("law", LAWS)
def test_law(law, population):
    """A law holds for the skeleton."""
    (LAWS | {"mesh": BRIEF["mesh"]})[law](make, population)


def test_learns():
    """Twice as good as Popularity on a population small enough to be quick."""
    split = fr.leave_one_out(synthetic(300, 200))
    algorithm = skeleton.your_algorithm(dim=8)
    state, _ = fr.simulate(algorithm, split, rounds=100, eval_every=50)
    ours = fr.evaluation.metrics_from_ranks(fr.make_evaluator(algorithm, split)(state).full)["ndcg@10"]
    assert (
        ours > 1.5 * fr.evaluation.metrics_from_ranks(fr.evaluation.popularity_ranks(split).full)["ndcg@10"]
    )


def test_readme_runs(capsys):
    """The README's blocks of Python run, one after the other."""
    names: dict[str, object] = {}
    for block in re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, README.name, "exec"), names)  # noqa: S102
    assert "learning_rate" in capsys.readouterr().out


def test_bad_size():
    """A size that is none is refused."""
    with pytest.raises(ValueError, match="dim must be at least 1, not 0"):
        skeleton.your_algorithm(dim=0)
