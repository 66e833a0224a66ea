"""Attacks that promote items: against numpy references, on the way to the server, and in what they achieve."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import fedjax_rec as fr
from fedjax_rec import attacks
from fedjax_rec.algorithms.fedmf import matrix_factorisation
from fedjax_rec.attacks.adversary import AttackerView, CollusionAttack, PoisonedRows, colluding
from fedjax_rec.attacks.fedrecattack import draw_public, fit_users
from fedjax_rec.attacks.promotion import draw_synthetic_users
from fedjax_rec.client.batches import catalogue, rated, with_negatives
from fedjax_rec.client.keys import name_clients, stream
from fedjax_rec.data.fake_users import with_fake_users
from fedjax_rec.evaluation import make_exposure_ratio
from fedjax_rec.federation.blocks import run_block
from fedjax_rec.testing import assert_close, fixed, run, tiny_population
from fedjax_rec.types import ClientWork, Server
from tests.references import promotion as reference

MODEL = matrix_factorisation(3, 1.0, item_bias=True, ratings=False)
ITEMS = 40
TARGETS = [7, 21]
ATTACKERS = np.array([2, 5, 11])


def tables_of(seed: int):
    rng = np.random.default_rng(seed)
    return {"bias": jnp.asarray(rng.normal(size=ITEMS), jnp.float32),
            "vector": jnp.asarray(rng.normal(size=(ITEMS, 3)), jnp.float32)}  # fmt: skip


def see(
    attack: CollusionAttack, seed: int = 0, present=(True, True, True), attack_state=None, tables=None
) -> AttackerView:
    """What the attackers see of random tables, in a first round unless they know something."""
    server = Server({}, tables_of(seed) if tables is None else tables)
    key = jax.random.key(3)
    if attack_state is None:
        attack_state = attack.init(key, MODEL, server, tiny_population(), ATTACKERS)
    keys = jax.random.split(jax.random.key(4), 3)
    return AttackerView(keys, jnp.asarray(present), MODEL, server, attack_state)


def craft(attack: CollusionAttack, view: AttackerView):
    """Craft in one program, compiled in a hurry."""
    options = {"xla_backend_optimization_level": 0}
    parts = (view.keys, view.present, view.server, view.attack_state)
    return jax.jit(
        lambda keys, present, server, known: attack.craft(AttackerView(keys, present, MODEL, server, known)),
        compiler_options=options,
    )(*parts)


def plain(server: Server):
    return np.asarray(server.tables["vector"], float), np.asarray(server.tables["bias"], float)


def test_explicit_boosting_equals_numpy():
    """Each attacker's rows and user, of whom the absent one keeps its own."""
    attack = attacks.explicit_boosting(TARGETS, learning_rate=0.7)
    view = see(attack, present=(True, False, True))
    poison, known = craft(attack, view)
    vectors, biases = plain(view.server)
    np.testing.assert_array_equal(poison.ids, [TARGETS] * 3)
    for n, user in enumerate(np.asarray(view.attack_state["vector"], float)):
        vector, bias = reference.pull_users([user], vectors, biases, TARGETS)
        np.testing.assert_allclose(poison.rows["vector"][n], -0.7 * vector, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(poison.rows["bias"][n], -0.7 * bias, rtol=1e-4, atol=1e-6)
        moved = reference.train_user(user, vectors, biases, TARGETS, 0.7, 1)
        np.testing.assert_allclose(known["vector"][n], user if n == 1 else moved, rtol=1e-4, atol=1e-6)
    assert np.abs(known["vector"][0] - view.attack_state["vector"][0]).max() > 1e-3


@pytest.mark.parametrize(("name", "steps"), [("a_ra", 0), ("a_hum", 30)])
def test_made_up_users_equal_numpy(name, steps):
    """Users are drawn from each attacker's key; A-hum's walk away from the targets for 30 steps."""
    attack = getattr(attacks, name)(TARGETS, learning_rate=0.2, users=4, deviation=0.5)
    view = see(attack)
    poison, _ = craft(attack, view)
    vectors, biases = plain(view.server)
    for n, key in enumerate(view.keys):
        users = np.asarray(draw_synthetic_users(key, MODEL, 4, 0.5)["vector"], float)
        for _ in range(steps):
            users = np.array([reference.train_user(u, vectors, biases, TARGETS, 0.2, -1) for u in users])
        vector, bias = reference.pull_users(users, vectors, biases, TARGETS)
        np.testing.assert_allclose(poison.rows["vector"][n], -0.2 * vector, rtol=1e-3, atol=1e-6)
        np.testing.assert_allclose(poison.rows["bias"][n], -0.2 * bias, rtol=1e-3, atol=1e-6)
    assert np.abs(poison.rows["vector"][0] - poison.rows["vector"][1]).max() > 1e-4


@pytest.mark.parametrize("name", ["pieck_ipe", "pieck_uea"])
def test_pieck_equals_numpy(name):
    """Silent for two changes of the model, which show who is popular; later changes do not count."""
    attack = getattr(attacks, name)(TARGETS, learning_rate=0.4, popular=6)
    sizes = np.random.default_rng(9).exponential(size=(4, ITEMS)) ** 3 / 20
    sizes[:2, TARGETS] = 2.0  # targets move most of all, and are not their own model
    seen = [tables_of(0)]
    for size in jnp.asarray(sizes, jnp.float32):
        old = seen[-1]
        seen.append(
            {"bias": old["bias"], "vector": old["vector"] + size[:, None] * jnp.array([[0.6, -0.8, 0.0]])}
        )
    laid = [np.column_stack([t["bias"], t["vector"]]).astype(float) for t in seen]
    attack_state = None
    sent = []
    for tables in seen[:4]:
        view = see(attack, attack_state=attack_state, tables=tables)
        poison, attack_state = craft(attack, view)
        sent.append(poison)
    assert all(not np.asarray(leaf).any() for one in sent[:2] for leaf in jax.tree.leaves(one.rows))
    liked = reference.mine(laid[:3], TARGETS, 6)
    assert set(liked) != set(reference.mine(laid[:4], TARGETS, 6))
    for turn in (2, 3):
        rows = laid[turn][TARGETS]
        popular = laid[turn][liked]
        if name == "pieck_ipe":
            expected = -0.4 * reference.cosine_gradient(rows, popular, 0.9)
        else:
            vector, bias = reference.pull_users(popular[:, 1:], laid[turn][:, 1:], laid[turn][:, 0], TARGETS)
            expected = -0.4 * np.column_stack([bias, vector])
        found = np.concatenate([sent[turn].rows["bias"][..., None], sent[turn].rows["vector"]], axis=2)
        np.testing.assert_allclose(found, np.broadcast_to(expected, found.shape), rtol=2e-3, atol=1e-6)


def test_fedrecattack_equals_numpy():
    """Approximate users after one step, the margins' gradient, and what each attacker sends of it in turn."""
    attack = attacks.fedrecattack(
        TARGETS, public=0.3, rows=9, norm=0.8, learning_rate=0.1, steps=1, deviation=0.7, noise=1e-16
    )
    view = see(attack, present=(True, False, True))
    known = view.attack_state
    poison, kept = craft(attack, view)
    vectors, biases = plain(view.server)
    events = [np.asarray(known["public"][name]) for name in ("user", "item", "counts")]
    own = jax.random.fold_in(jax.random.fold_in(view.keys[0], 0), 0)
    draws = np.asarray(jax.random.randint(own, (2, len(events[0])), 0, ITEMS))
    pairs = set(zip(events[0].tolist(), events[1].tolist(), strict=True))
    users = np.asarray(known["users"]["vector"], float)
    slope = np.zeros_like(users)
    for u, i, counts, first, second in zip(*events, *draws, strict=True):
        j = second if (u, first) in pairs else first
        gap = users[u] @ (vectors[i] - vectors[j]) + biases[i] - biases[j]
        slope[u] -= counts * (1 - reference.sigmoid(gap)) * (vectors[i] - vectors[j])
    users = reference.adam_step(users, slope, 0.01)
    np.testing.assert_allclose(kept["users"]["vector"], users, rtol=1e-4, atol=1e-5)
    public = {pair for pair in pairs if pair[0] not in ATTACKERS}
    real = ~np.isin(np.arange(24), ATTACKERS)
    gradient = reference.margins_gradient(users, vectors, biases, TARGETS, public, real)
    chosen = np.asarray(poison.ids)
    assert all(len(set(rows)) == 9 and list(rows[:2]) == TARGETS for rows in chosen.tolist())
    expected = -0.1 * reference.send_in_turn(gradient, chosen, [True, False, True], 0.8)
    found = np.concatenate([poison.rows["bias"][..., None], poison.rows["vector"]], axis=2)
    np.testing.assert_allclose(found, expected, rtol=2e-3, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(found[0, :2], axis=1), 0.08, rtol=1e-3)  # far above the norm
    again, _ = craft(attack, view._replace(attack_state=kept, keys=jax.random.split(jax.random.key(8), 3)))
    np.testing.assert_array_equal(again.ids[::2], chosen[::2], "who took part has its rows for good")
    assert not np.array_equal(again.ids[1], chosen[1])


def test_what_is_public():
    """A share of all interactions, none twice, each its user's own; the attackers' do not count."""
    population = tiny_population()
    known = draw_public(jax.random.key(0), population, 0.5, ATTACKERS)
    pairs = set(zip(known["user"].tolist(), known["item"].tolist(), strict=True))
    offsets = np.asarray(population.offsets)
    items = np.asarray(population.examples["items"])
    assert len(pairs) == len(known["user"]) == -(-len(items) // 2)
    assert all(item in items[offsets[user] : offsets[user + 1]] for user, item in pairs)
    np.testing.assert_array_equal(known["counts"] == 0, np.isin(known["user"], ATTACKERS))


def test_approximate_users_learn_what_is_public():
    """After many steps public items score above others for most, and users without any are as drawn."""
    attack = attacks.fedrecattack([7], public=0.5, rows=1)
    view = see(attack)
    users, _ = jax.jit(lambda: fit_users(view, optax.adam(0.05), 60))()
    known = view.attack_state["public"]
    scores = np.asarray(users["vector"]) @ np.asarray(view.server.tables["vector"]).T
    above = [scores[u, i] > np.median(scores[u]) for u, i, c in zip(*known.values(), strict=True) if c]
    assert np.mean(above) > 0.7
    silent = np.setdiff1d(np.arange(24), np.asarray(known["user"])[np.asarray(known["counts"]) > 0])
    old = view.attack_state["users"]["vector"]
    np.testing.assert_array_equal(users["vector"][silent], old[silent])


def crafted(rows: int) -> CollusionAttack:
    """Attackers who send numbers that say who and where they are, in rows of their own."""

    def craft(view):
        ids = jnp.stack([(jnp.arange(rows) * (n + 2) + n) % ITEMS for n in range(3)])
        value = jnp.arange(3.0)[:, None] + 1 + ids / 100
        return PoisonedRows(
            ids, {"bias": value, "vector": jnp.stack([value] * 3, axis=2)}
        ), view.attack_state + 1

    return CollusionAttack("crafted", lambda *_: jnp.int32(0), craft)


@pytest.mark.parametrize("transform", [None, fr.transforms.clip(1e9)], ids=["lanes", "waves"])
def test_the_server_sums_honest_updates_and_poison(transform):
    """What is crafted arrives whole; honest clients send what they would; private leaves of attackers rest."""
    population = tiny_population()
    ids = np.arange(12)
    rows = 8
    make = lambda adversary=None: fr.fedmf(  # noqa: E731
        dim=3, sampler=fixed(ids), batch_size=6, num_negatives=1, local_epochs=2 if transform else 1,
        transform=transform, adversary=adversary,
    )  # fmt: skip
    algorithm = make(colluding(crafted(rows), ATTACKERS))
    honest = make()
    key = jax.random.key(7)
    state = algorithm.init(key, population)
    after, info = jax.jit(algorithm.round)(key, state, population)
    expected = jax.tree.map(lambda x: np.array(x, float), state.server.tables)
    start = state._replace(transform_state=(), adversary=())
    for client in np.setdiff1d(ids, ATTACKERS):
        update = fr.client_update(honest, key, start, population, int(client))
        jax.tree.map(lambda t, row, at=update.ids: np.add.at(t, at, row), expected, update.rows)
    poison, _ = crafted(rows).craft(AttackerView(None, None, None, None, 0))  # type: ignore[arg-type]
    room = 3 * 2 * -(-np.diff(population.offsets)[ATTACKERS] // 3)
    assert room.min() < rows < room.max()  # a short history has room for few rows: the last are left out
    for n in range(3):
        at = np.asarray(poison.ids[n])[: room[n]]
        jax.tree.map(lambda t, row, n=n, at=at: np.add.at(t, at, row[n, : len(at)]), expected, poison.rows)
    assert_close(after.server.tables, expected, "the model after a round")
    moved = np.asarray(after.private["vector"] != state.private["vector"]).any(1)
    np.testing.assert_array_equal(np.flatnonzero(moved), [i for i in ids if i not in {*ATTACKERS, 3}])
    assert int(after.adversary) == 1
    plain = jax.jit(make().round)(key, start, population)[1]
    assert float(info.examples) < float(plain.examples)


def test_lanes_order_and_devices_are_invisible():
    """The attackers' rows depend on the round and their ids, not on where in a cohort they stand."""
    attack = attacks.fedrecattack([7], rows=5, public=0.3, learning_rate=0.1)
    ids = np.arange(24)
    plain = fr.fedmf(dim=2, sampler=fixed(ids), lanes=24, adversary=colluding(attack, ATTACKERS))
    expected = run(plain, tiny_population(), 3)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("clients",))
    shuffled = fixed(np.random.default_rng(0).permutation(ids))
    other = fr.fedmf(
        dim=2, sampler=shuffled, lanes=4, mesh=mesh, adversary=colluding(attack, ATTACKERS[::-1])
    )
    assert_close(run(other, tiny_population(), 3), expected, "another cohort", 1e-4)


def either(options: list[CollusionAttack], rows: int, items: int) -> CollusionAttack:
    """All attacks in one compiled program; which one it is stands in what they know."""

    def init(*arguments):
        return jnp.int32(0), tuple(attack.init(*arguments) for attack in options)

    def craft(view):
        which, known = view.attack_state

        def one(number):
            poison, new = options[number].craft(view._replace(attack_state=known[number]))
            gap = [(0, 0), (0, rows - poison.ids.shape[1])]
            ids = jnp.pad(poison.ids, gap, constant_values=items)
            padded = jax.tree.map(lambda x: jnp.pad(x, [*gap, (0, 0)]), poison.rows)
            return PoisonedRows(ids, padded), (which, (*known[:number], new, *known[number + 1 :]))

        return jax.lax.switch(which, [lambda _, n=n: one(n) for n in range(len(options))], 0)

    return CollusionAttack("either", init, craft)


def test_every_attack_raises_exposure():
    """On a small population that likes what is popular, for an item that nearly nobody has; mean of four seeds."""
    data = fr.data.synthetic(60, 50, seed=1, min_events=4, median_events=10, taste=1.0, popularity=2.0)
    split = fr.leave_one_out(data, num_candidates=5)
    target = int(np.argmin(np.bincount(split.items, minlength=50)))
    split = with_fake_users(split, 6, items=[target], length=4)
    ids = np.arange(60, 66)
    nothing = PoisonedRows(jnp.full((6, 1), 50), {"vector": jnp.zeros((6, 1, 4))})
    options = [
        CollusionAttack("nobody", lambda *_: (), lambda view: (nothing, view.attack_state)),
        attacks.explicit_boosting([target], learning_rate=2.0),
        attacks.a_ra([target], learning_rate=20.0, deviation=0.3),
        attacks.a_hum([target], learning_rate=0.3),
        attacks.pieck_ipe([target], popular=3, rounds=3),
        attacks.pieck_uea([target], popular=5, rounds=3),
        attacks.fedrecattack([target], rows=10, learning_rate=0.1, public=0.2),
    ]
    algorithm = fr.fedmf(
        dim=4, cohort=66, learning_rate=0.1, num_negatives=1, item_bias=False, init_scale=0.2,
        adversary=colluding(either(options, 10, 50), ids),
    )  # fmt: skip
    population = fr.population_of(split)
    found = {}
    measure = make_exposure_ratio(algorithm, split, [target], ks=[10], exclude=ids)

    def whole(key, which):
        state = algorithm.init(key, population)
        state = state._replace(adversary=(which, state.adversary[1]))
        return run_block(algorithm, 20, key, state, population, jnp.int32(20))[0]

    runs = jax.jit(whole, compiler_options={"xla_backend_optimization_level": 0})
    for number, attack in enumerate(options):
        states = [runs(jax.random.key(seed), jnp.int32(number)) for seed in range(4)]
        found[attack.name] = float(np.mean([measure(state)["er@10"] for state in states]))
    assert found["nobody"] < 0.02
    assert all(found[attack.name] > 0.02 + found["nobody"] for attack in options[1:]), found
    assert min(found[name] for name in ("a_ra", "pieck_uea", "fedrecattack")) > 0.3, found


def one_client(client: int, population):
    clients = name_clients(stream(jax.random.key(0), "client"), jnp.array([client]), population)
    return jax.tree.map(lambda x: x[0], clients)


def flipped(batches, client: int, population, t: int = 0, **settings):
    """A client's batch without and with label flip by clients 1 and 4."""
    work = ClientWork(batches, 1, *[lambda *_: None] * 4)  # type: ignore[arg-type]
    wrapped = attacks.label_flip([1, 4], **settings).wrap_work(work)
    who = one_client(client, population)
    return batches.batch(who, population, jnp.int32(t)), wrapped.batches.batch(who, population, jnp.int32(t))


def test_label_flip_swaps_positives_with_their_first_negatives():
    """Honest clients' batches stay; a pair without a positive or a negative is left out."""
    population = tiny_population()
    held = set(
        np.asarray(population.examples["items"])[population.offsets[4] : population.offsets[5]].tolist()
    )
    seen = 0
    for t in range(3):
        old, new = flipped(with_negatives(12, 3), 4, population, t, num_negatives=3)
        positive = np.asarray(old.ids[:3])
        drawn = np.asarray(old.ids[3:]).reshape(3, 3)
        both = (positive < 40) & (drawn[:, 0] < 40)
        np.testing.assert_array_equal(new.ids[:3], np.where(both, drawn[:, 0], 40))
        np.testing.assert_array_equal(
            np.asarray(new.ids[3:]).reshape(3, 3)[:, 0], np.where(both, positive, 40)
        )
        np.testing.assert_array_equal(np.asarray(new.ids[3:]).reshape(3, 3)[:, 1:], 40)
        np.testing.assert_array_equal(new.data["mask"], np.asarray(new.ids) < 40)
        assert not held & set(np.asarray(new.ids[:3]).tolist())
        seen += both.sum()
    assert seen > 2
    old, new = flipped(with_negatives(12, 3), 5, population, num_negatives=3)
    assert_close(new, old, "an honest batch", 0)


def test_label_flip_of_ratings_and_of_the_catalogue():
    """5 stars become 1, and examples 0 instead of 1; what is no example stays none."""
    population = tiny_population()
    old, new = flipped(rated(8), 1, population)
    mask = np.asarray(old.data["mask"]) > 0
    np.testing.assert_allclose(
        np.asarray(new.data["rating"]), np.where(mask, 6 - np.asarray(old.data["rating"]), 0)
    )
    old, new = flipped(catalogue(2), 4, population)
    np.testing.assert_array_equal(new.data["label"] + old.data["label"], old.data["mask"])
    with pytest.raises(ValueError, match="num_negatives=None"):
        flipped(with_negatives(12, 3), 4, population)
    with pytest.raises(ValueError, match="num_negatives=4"):
        flipped(with_negatives(12, 3), 4, population, num_negatives=4)


@pytest.mark.parametrize("build", [
    lambda: attacks.explicit_boosting([]), lambda: attacks.a_hum([3, 3]), lambda: attacks.a_ra([-1]),
    lambda: attacks.explicit_boosting([1], learning_rate=0.0), lambda: attacks.pieck_ipe([1], popular=0),
    lambda: attacks.fedrecattack([1], public=0.0), lambda: attacks.fedrecattack([1, 2], rows=1),
    lambda: colluding(crafted(1), []), lambda: colluding(crafted(1), [2, 2]), lambda: attacks.label_flip([-1]),
    lambda: fr.colr(dim=4, rank=2, adversary=colluding(crafted(1), [1])),
    lambda: run(fr.fedmf(dim=3, cohort=9, adversary=colluding(crafted(1), [24])), tiny_population()),
    lambda: see(attacks.pieck_uea([1], popular=40)), lambda: see(attacks.fedrecattack([1], rows=41)),
    lambda: attacks.a_ra([40]).craft(see(attacks.a_ra([40]))),
])  # fmt: skip
def test_what_cannot_be_is_refused(build):
    """Settings out of range at once, populations that are too small when a run starts."""
    with pytest.raises(ValueError, match=r"must be|exceed|there is no|send something else"):
        build()
