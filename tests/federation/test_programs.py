"""Programs serve again, whoever asks, but only for what they were compiled for; and few are kept."""

from functools import partial
from operator import add, mul
from typing import Any

import jax
import numpy as np
import pandas as pd
import pytest

import fedjax_rec as fr
from fedjax_rec.federation import programs
from fedjax_rec.federation.blocks import run_block
from fedjax_rec.federation.programs import compiled


@pytest.fixture
def compilations():
    """Names of the functions that jax compiles, as it does."""
    found = []

    def note(event, duration_secs, **facts):
        del duration_secs
        if event == "/jax/core/compile/backend_compile_duration":
            found.append(facts.get("fun_name"))

    jax.monitoring.register_event_duration_secs_listener(note)
    yield found
    jax.monitoring.unregister_event_duration_listener(note)


def _population(name, users=24):
    rows = [(f"{name}{user}", item) for user in range(users) for item in range(user % 3, 12, 2)]
    return fr.Population.from_frame(pd.DataFrame(rows, columns=["user", "item"]))


def _make(rate=0.1):
    return fr.fedmf(dim=2, cohort=6, learning_rate=rate)


def _train(algorithm, population):
    state, history = fr.simulate(algorithm, population, rounds=2, eval_every=2)
    assert history.num_compilations == 1
    return np.asarray(jax.tree.leaves(state.server)[-1])


def test_a_second_run_compiles_nothing(compilations):
    """Nor does one on data with other external ids, nor with an algorithm of the same settings made anew."""
    algorithm = _make()
    first = _train(algorithm, _population("a"))
    compilations.clear()
    for again, name in ((algorithm, "a"), (algorithm, "b"), (_make(), "c")):
        np.testing.assert_array_equal(_train(again, _population(name)), first)
    assert "jit(run_block)" not in compilations
    assert "jit(_init)" not in compilations
    other = _train(_make(0.2), _population("a"))
    assert "jit(run_block)" in compilations
    assert not np.array_equal(other, first)


def test_external_ids_are_no_part_of_a_program(compilations):
    """What one client would send is compiled once for data of one shape, whatever users and items are called."""
    algorithm = _make()
    key = jax.random.key(0)
    sent = []
    for name in "ab":
        population = _population(name)
        state = algorithm.init(key, population)
        compilations.clear()
        sent.append(fr.client_update(algorithm, key, state, population, 3))
    assert "jit(run)" not in compilations
    np.testing.assert_array_equal(sent[0].ids, sent[1].ids)


def test_programs_of_long_ago_go(compilations):
    """A loop over shapes keeps the newest."""
    client = jax.devices()[0].client
    for size in range(3 * programs.RECENT):
        compiled(mul, (3,), np.arange(size))
    alive = len(client.live_executables())
    for size in range(3 * programs.RECENT, 6 * programs.RECENT):
        compiled(mul, (3,), np.arange(size))
    assert len(client.live_executables()) <= alive
    compilations.clear()
    compiled(mul, (3,), np.arange(6 * programs.RECENT - 1))
    assert compilations == []


def test_programs_are_told_apart():
    """By their function, what they are made for, shapes, dtypes, and constants that they close over."""
    ones = np.ones(2, np.float32)
    given: list[Any] = [
        (mul, 2.0),
        (mul, 3.0),
        (add, 2.0),
        (mul, np.array([5, 7], np.float32)),
        (mul, np.array([5, 8], np.float32)),
    ]
    results = [compiled(function, (static,), ones)(ones).tolist() for function, static in given]
    assert results == [[2, 2], [3, 3], [3, 3], [5, 7], [5, 8]]
    assert compiled(mul, (2.0,), ones.astype(np.int32))(np.array([4, 4], np.int32)).dtype == np.float32
    calls: list[str] = []
    for name in "ab":
        called = compiled(_tell, (calls.append, name), ones)
        jax.block_until_ready(called(ones))
        jax.effects_barrier()
    assert calls == ["a", "b"]


def _tell(call, name, x):
    jax.debug.callback(lambda _: call(name), x)
    return x


def test_a_round_is_traced_once():
    """Its shapes and the loop over rounds share the trace, most of what a second process pays for a program."""
    algorithm, population = _make(), _population("a").without_ids()
    traces = []

    def counted(key: Any, state: Any, population: Any) -> Any:
        traces.append(1)
        return algorithm.round(key, state, population)

    counting = algorithm._replace(round=counted)
    key = jax.random.key(0)
    state = jax.eval_shape(algorithm.init, key, population)
    count = jax.ShapeDtypeStruct((), "int32")
    jax.jit(partial(run_block, counting, 3)).trace(key, state, population, count)
    assert len(traces) == 1
