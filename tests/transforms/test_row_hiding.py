"""Row hiding: what is sent and what it costs, what training notices of it, and what attackers still learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fedjax_rec as fr
from fedjax_rec.attacks.inference import drop_empty_slots, guess_by_rows, guess_by_signs, imia, score_guess
from fedjax_rec.federation.federate import client_update
from fedjax_rec.testing import assert_close, fixed, run, tiny_population
from fedjax_rec.transforms import row_hiding
from fedjax_rec.transforms.base import Transform, Wire
from fedjax_rec.transforms.chaining import chain
from fedjax_rec.transforms.clipping import add_noise, clip
from fedjax_rec.transforms.sparsification import top_k
from fedjax_rec.types import Server, Update

ITEMS = 40
CLIENT = 6
ROUNDS = 8
HIDING = {
    "pseudo": row_hiding.pseudo_items(1.5),
    "fresh": row_hiding.pseudo_items(1.5, fixed=False),
    "random": row_hiding.random_rows(1.0, 0.3, ITEMS),
    "all": row_hiding.all_rows(ITEMS),
}


def an_update(slots: int = 12, own: int = 7) -> tuple[Update, Server]:
    """A client with some rows of random numbers, and empty slots among them."""
    rng = np.random.default_rng(1)
    ids = np.full(slots, ITEMS)
    ids[rng.choice(slots, own, replace=False)] = rng.choice(ITEMS, own, replace=False)
    rows = {"bias": rng.normal(size=slots), "vector": rng.normal(size=(slots, 3))}
    present = ids < ITEMS
    rows = {"bias": rows["bias"] * present, "vector": rows["vector"] * present[:, None]}
    server = Server({}, {"bias": jnp.zeros(ITEMS), "vector": jnp.zeros((ITEMS, 3))})
    return Update({}, jnp.asarray(ids), jax.tree.map(jnp.float32, rows), jnp.float32(1)), server


def send(transform: Transform, sent: Update, server: Server, rounds: int):
    """What a client sends in several rounds, remembering what it must."""
    memory = None if transform.init is None else transform.init(server)
    for number in range(rounds):
        key = jax.random.fold_in(jax.random.key(2), number)
        if transform.update_with_state is None:
            yield transform.update(key, sent, server)
        else:
            out, memory = transform.update_with_state(key, sent, memory, server)
            yield out


@pytest.mark.parametrize("name", HIDING)
def test_own_rows_arrive_and_others_are_as_declared(name):
    """No id twice; own rows keep their numbers; others are 0; as many on average as the wire counts."""
    sent, server = an_update()
    own = set(sent.ids[sent.ids < ITEMS].tolist())
    plain = Wire(len(own), 4, 0, 32, 6)
    wire = HIDING[name].wire
    counts = []
    assert wire is not None
    declared = wire(plain)
    for seed in range(1 if name != "random" else 40):
        transform = HIDING[name]
        key = jax.random.key(seed)
        out = transform.update(key, sent, server)
        ids = np.asarray(out.ids)[np.asarray(out.ids) < ITEMS].tolist()
        assert len(ids) == len(set(ids))
        assert own <= set(ids)
        counts.append(len(ids))
        dense = jax.tree.map(lambda t, r, i=out.ids: t.at[i].add(r, mode="drop"), server.tables, out.rows)
        expected = jax.tree.map(lambda t, r: t.at[sent.ids].add(r, mode="drop"), server.tables, sent.rows)
        assert_close(dense, expected, "rows", 0)
    assert np.mean(counts) == pytest.approx(declared.rows, abs=1.5 if name == "random" else 0.51)
    assert declared.id_bits == (0 if name == "all" else 6)


def test_pseudo_rows_are_of_the_size_of_the_own_rows():
    """Other rows look like own ones by their numbers, leaf by leaf; empty slots stay 0."""
    sent, server = an_update()
    for transform in (
        row_hiding.pseudo_items(3.0, pseudo_scale=2.0),
        row_hiding.all_rows(ITEMS, pseudo_scale=2.0),
    ):
        out = transform.update(jax.random.key(0), sent, server)
        other = ~np.isin(out.ids, sent.ids) & (np.asarray(out.ids) < ITEMS)
        for name in ("bias", "vector"):
            own = np.asarray(sent.rows[name])[np.asarray(sent.ids) < ITEMS]
            size = np.sqrt(np.mean(np.square(np.asarray(out.rows[name])[other])))
            assert size == pytest.approx(2 * np.sqrt(np.mean(own**2)), rel=0.4)
            assert not np.asarray(out.rows[name])[np.asarray(out.ids) == ITEMS].any()


def trained(transform: Transform):
    make = fr.fedmf(dim=2, sampler=fixed(np.arange(12)), batch_size=20, num_negatives=1, transform=transform)
    return run(make, tiny_population(), 2)


def test_training_notices_nothing():
    """Without noise the sums are those of a run that hides nothing, in the engine and with its memory."""
    plain = trained(clip(1e9))
    hidden = trained(HIDING["pseudo"])
    assert_close(hidden.server.tables, plain.server.tables, "tables")
    np.testing.assert_array_equal(
        hidden.transform_state["drawn"], np.isin(np.arange(24), [0, 1, 2, *range(4, 12)])
    )


def test_bounds_are_known_unless_numbers_are_added():
    """A clip before zeros holds; before noise it does not build."""
    assert chain(clip(1.0), row_hiding.pseudo_items(1.0)).bound is not None
    with pytest.raises(ValueError, match="may raise the norm"):
        chain(clip(1.0), row_hiding.pseudo_items(1.0, pseudo_scale=1.0))


@pytest.mark.parametrize("hiding", HIDING)
def test_orders_in_which_nothing_is_hidden_do_not_build(hiding):
    """What leaves numbers out would drop the rows that hide; noise of before would not be on them."""
    with pytest.raises(ValueError, match=r"top_k\(0.5\) would leave out the rows by which .* hides .*before"):
        chain(HIDING[hiding], top_k(0.5))
    with pytest.raises(ValueError, match="after noise would hide nothing"):
        chain(clip(1.0), add_noise(0.1), HIDING[hiding])
    assert chain(top_k(0.5), clip(1.0), HIDING[hiding], add_noise(0.1)).bound is not None


@pytest.fixture(scope="module")
def rounds():
    """A client's updates in several rounds of FedMF with new negatives each time, and its items."""
    population = tiny_population()
    algorithm = fr.fedmf(
        dim=4, batch_size=200, num_negatives=2, learning_rate=0.3, item_bias=False, init_scale=2.0
    )
    state = run(algorithm, population, 5)
    items = population.examples["items"][population.offsets[CLIENT] : population.offsets[CLIENT + 1]]
    key = jax.random.key(5)
    found = []
    for number in range(ROUNDS):
        in_round = state._replace(round=jnp.int32(number))
        update = client_update(algorithm, key, in_round, population, CLIENT)
        slots = jnp.concatenate([update.ids, jnp.array([ITEMS])])
        rows = jax.tree.map(lambda x: jnp.concatenate([x, jnp.zeros((1, *x.shape[1:]))]), update.rows)
        found.append(Update({}, slots, rows, update.weight))
    return found, np.asarray(items), state.server


def attack(rounds, transform: Transform | None, **how):
    """Precision and recall of the row-set attacker who looks at all rounds together."""
    updates, items, server = rounds
    memory = None if transform is None or transform.init is None else transform.init(server)
    seen = []
    for number, sent in enumerate(updates):
        key = jax.random.fold_in(jax.random.key(2), number)
        out = sent
        if transform is not None and transform.update_with_state is not None:
            out, memory = transform.update_with_state(key, sent, memory, server)
        elif transform is not None:
            out = transform.update(key, sent, server)
        seen.append(drop_empty_slots(np.asarray(out.ids), np.asarray(out.rows["vector"]), ITEMS))
    return score_guess(guess_by_rows(seen, **how), items)


def test_the_row_set_attacker(rounds):
    """Negatives and fresh pseudo-items are intersected away; fixed ones stay, as far as they promise to."""
    count = len(rounds[1])
    alone = score_guess(
        guess_by_rows([drop_empty_slots(rounds[0][0].ids, rounds[0][0].rows["vector"], ITEMS)]), rounds[1]
    )
    assert alone.recall == 1
    assert alone.precision < 0.7
    assert attack(rounds, None).f1 == 1
    assert attack(rounds, HIDING["fresh"]).precision > 0.8
    hidden = attack(rounds, HIDING["pseudo"])
    everything = attack(rounds, HIDING["all"])
    assert hidden.recall == 1
    assert hidden.precision < 0.5
    assert everything.precision == pytest.approx(count / ITEMS)
    response = attack(rounds, row_hiding.random_rows(0.6, 0.4, ITEMS))
    assert response.recall == pytest.approx(0.6, abs=0.25)
    assert response.precision < 0.6


def test_values_betray_rows_of_zeros(rounds):
    """Who reads values is not fooled by zeros, but by noise."""
    zeros = row_hiding.all_rows(ITEMS)
    noisy = row_hiding.all_rows(ITEMS, pseudo_scale=1.0)
    assert attack(rounds, zeros, read_values=True).f1 == 1
    assert attack(rounds, noisy, read_values=True).precision == pytest.approx(len(rounds[1]) / ITEMS)


@pytest.mark.parametrize("name", ["guess_by_signs", "imia"])
def test_values_betray_labels_and_noise_hides_them(rounds, name):
    """Both attackers find most positives of plain updates, and about as many as chance under strong noise."""
    updates, items, server = rounds
    before = np.asarray(server.tables["vector"])

    def f1(transform: Transform | None) -> float:
        found = []
        for number, sent in enumerate(updates):
            out = sent if transform is None else transform.update(jax.random.key(number), sent, server)
            ids, rows = drop_empty_slots(np.asarray(out.ids), np.asarray(out.rows["vector"]), ITEMS)
            guess = (
                guess_by_signs(ids, rows)
                if name == "guess_by_signs"
                else imia(before, ids, rows, share=len(items) / len(ids), learning_rate=1.0)
            )
            found.append(score_guess(guess, items).f1)
        return float(np.mean(found))

    chance = len(items) / np.mean([int((u.ids < ITEMS).sum()) for u in updates])
    plain = f1(None)
    noisy = f1(chain(clip(0.1), add_noise(1.0)))
    assert plain > chance + 0.2, (plain, chance)
    assert noisy < plain - 0.15, (noisy, plain)


@pytest.mark.parametrize("build", [
    lambda: row_hiding.pseudo_items(0.0), lambda: row_hiding.pseudo_items(1.0, pseudo_scale=-1.0),
    lambda: row_hiding.random_rows(0.0, 0.5, 9), lambda: row_hiding.random_rows(0.5, 1.5, 9),
    lambda: row_hiding.all_rows(9).update(jax.random.key(0), *an_update()),
    lambda: imia(np.ones((2, 1)), np.arange(2), np.ones((2, 1)), share=1.0, learning_rate=1),
    lambda: guess_by_rows([]), lambda: score_guess(np.arange(2), np.arange(0)),
])  # fmt: skip
def test_what_cannot_be_is_refused(build):
    with pytest.raises(ValueError, match=r"must be|but there are|at least one|out of range|has none"):
        build()
