"""Arguments of the wrong type, or with names that nothing takes, are refused in one line at the call."""

import inspect
from typing import Any, get_args, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_rec
from fedjax_rec.algorithms import registry
from fedjax_rec.client.population import population_of
from fedjax_rec.errors import ArgumentError, ParameterError, check_arguments

fr: Any = fedjax_rec  # what is called here is wrong on purpose

WRONG = {"sampler": 0.5, "mesh": 2, "loss": 3, "architecture": 1, "neighbours": 5}
WRONG |= {"row_update": 1.0, "server_rows": 2, "table_shards": 1.5}


def _parameters(factory: Any) -> list[str]:
    hints = get_type_hints(factory)
    parameters = inspect.signature(factory).parameters.values()
    unpacked = [get_args(hints[p.name])[0] for p in parameters if p.kind is p.VAR_KEYWORD]
    own = [p.name for p in parameters if p.kind is not p.VAR_KEYWORD]
    return own + [name for each in unpacked for name in get_type_hints(each)]


@pytest.mark.parametrize("name", registry.names())
def test_every_setting_of_every_algorithm(name):
    """A text where a number or a value belongs, a number where a text belongs, and a name of nothing."""
    factory = registry.factory_of(name)
    for parameter in _parameters(factory):
        value = WRONG.get(parameter, b"?" if parameter == "aggregator" else "0.1")
        with pytest.raises(ArgumentError, match=parameter) as caught:
            factory(**{parameter: value})
        assert "\n" not in str(caught.value)
        assert repr(value) in str(caught.value)
    with pytest.raises(ArgumentError, match="takes no num_rounds"):
        factory(num_rounds=3)


@pytest.fixture(scope="module")
def split():
    return fr.leave_one_out(fr.data.synthetic(30, 90))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda _: fr.fedmf(server_optimizer="fedadam"),
            "server_optimizer is 'fedadam', a str; fedmf takes an",
        ),
        (lambda _: fr.fedmf(local_optimizer="adam"), "local_optimizer is 'adam', a str"),
        (lambda _: fr.fedmf(learning_rate="0.1"), "learning_rate is '0.1', a str; fedmf takes a number"),
        (lambda _: fr.fedmf(lr=0.1), "fedmf takes no lr (given: 0.1)"),
        (lambda _: fr.fedmf(learningrate=0.1), "did you mean learning_rate?"),
        (lambda _: fr.fedmf(dim=True), "dim is True, a bool; fedmf takes a whole number"),
        (lambda _: fr.fedmf(dim=8.0), "dim is 8.0, a float"),
        (lambda _: fr.fedmf(faults=fr.Faults(keep="2")), "Faults.keep is '2', a str"),
        (lambda _: fr.fedmf(asynchronous=fr.FedBuff(buffer=2.5)), "FedBuff.buffer is 2.5, a float"),
        (lambda _: fr.samplers.uniform("20"), "cohort is '20', a str"),
        (lambda _: fr.transforms.clip("1"), "norm is '1', a str"),
        (lambda _: fr.server.fedadam("0.1"), "learning_rate is '0.1', a str"),
        (lambda split: fr.simulate(fr.fedmf(), split, rounds=2.0), "rounds is 2.0, a float"),
        (
            lambda split: fr.simulate(fr.fedmf(), split, seed=1.5),
            "seed is 1.5, a float",
        ),
        (
            lambda split: fr.simulate(fr.fedmf, split),
            "algorithm is fedmf, a function; simulate takes an Algorithm; call it: fr.fedmf()",
        ),
        (lambda split: fr.evaluate(fr.fedmf, None, split), "takes an Algorithm; call it: fr.fedmf()"),
        (
            lambda split: fr.simulate(fr.fedmf(), split, round=20),
            "no round (given: 20); did you mean rounds?",
        ),
        (lambda split: fr.sweep(fr.fedmf, split, {}, round=20), "no round (given: 20); did you mean rounds?"),
        (lambda _: fr.recommend("no/such/run", k="3"), "k is '3', a str; recommend takes a whole number"),
        (
            lambda split: fr.recommend(fr.fedmf(dim=2).init(jax.random.key(0), fr.population_of(split))),
            "a State; recommend takes what fr.fit or fr.load returned, or a run folder",
        ),
        (lambda _: fr.top_k("no/such/run", "ann"), "top_k takes what fr.load returned"),
        (lambda _: fr.fedmf(server_optimizer="fedadam"), "such as fr.server.fedadam()"),
        (lambda _: fr.federate(*fr.fedmf()[3:5], server_optimizer="adam"), "such as fr.server.fedadam()"),
        (lambda split: fr.simulate(fr.fedmf(), split, client_store=3), "client_store is 3, an int"),
        (
            lambda split: fr.simulate(fr.fedmf(), split, stop=fr.Stop(patience="3")),
            "Stop.patience is '3', a str",
        ),
        (
            lambda split: fr.sweep(fr.fedmf, split, {"dim": [2]}, seeds=3),
            "seeds is 3, an int; sweep takes",
        ),
        (lambda split: fr.make_evaluator(fr.fedmf(), split, which=1), "which is 1, an int"),
        (lambda _: fr.evaluation.metrics_from_ranks(np.ones(3), 10), "ks is 10, an int"),
        (lambda _: fr.evaluation.top_k(jnp.zeros((1, 3)), "3"), "k is '3', a str"),
        (lambda _: fr.data.synthetic(30.0, 40), "num_users is 30.0, a float"),
    ],
)
def test_one_line_at_the_call(call, words, split):
    """The line names argument, value, and what is taken instead."""
    with pytest.raises(ArgumentError) as caught:
        call(split)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: fr.fedmf(learning_rate=0.1, local_optimizer=optax.adam(0.05)),
            "learning_rate=0.1 changes nothing beside local_optimizer, which has a rate of its own",
        ),
        (
            lambda: fr.fedmf(learning_rate=jnp.float32(0.1), local_optimizer=optax.adam(0.05)),
            "changes nothing",
        ),
        (lambda: fr.fedncf(learning_rate=0.1, local_optimizer=optax.adam(0.05)), "changes nothing"),
        (lambda: fr.fedper(learning_rate=0.1, local_optimizer=optax.adam(0.05)), "changes nothing"),
        (lambda: fr.fedsasrec(learning_rate=0.1, local_optimizer=optax.adam(0.05)), "changes nothing"),
        (
            lambda: fr.fedmf(loss="mse", num_negatives=9),
            "num_negatives=9 changes nothing beside loss='mse'",
        ),
        (lambda: fr.fedrecon(loss="mse", num_negatives=9), "num_negatives=9 changes nothing"),
        (lambda: fr.fedrecon(loss="bce", shuffle=True), "shuffle=True changes nothing beside loss='bce'"),
        (
            lambda: fr.fedncf(architecture="gmf", layers=2),
            "layers=2 changes nothing beside architecture='gmf'",
        ),
    ],
)
def test_nothing_is_taken_and_left_unused(call, words):
    """Of two arguments of which one leaves the other nothing to do."""
    with pytest.raises(ParameterError) as caught:
        call()
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_right_is_taken(split):
    """Numbers of numpy, arrays of no axes for rates, records, and None where it is a default."""
    fr.fedmf(
        dim=np.int64(2), learning_rate=jnp.float32(0.1), prox=np.float32(0.1), cohort=None, lanes=np.int32(1)
    )
    fr.fedmf(
        local_optimizer=optax.GradientTransformationExtraArgs(*optax.sgd(0.1)), aggregator=fr.server.mean()
    )
    fr.fedmf(learning_rate=1, sampler=fr.samplers.everyone())
    for function, arguments in (
        (fr.simulate, {"algorithm": fr.fedmf(), "data": population_of(split), "seed": np.int64(2)}),
        (fr.evaluation.metrics_from_ranks, {"ks": np.array([1, 5])}),
        (fr.sweep, {"seeds": range(3)}),
    ):
        check_arguments(function, arguments)


def test_an_error_of_arguments_is_both():
    """Whoever catches a ValueError, as for a value out of range, or a TypeError, as Python raises, has it."""
    assert issubclass(ArgumentError, ValueError)
    assert issubclass(ArgumentError, TypeError)
