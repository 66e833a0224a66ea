"""Every rule of optax that may train touched rows only trains them as dense training does."""

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib

import fedjax_rec as fr
from fedjax_rec.client.exactness import join_state, split_state, try_optimizer

B, D, NUM_ITEMS = (
    5,
    3,
    400,
)  # rows of a batch, their length, rows of the table: the trial's own, so compiled once
VISITS = (0, 1, 2, 1, 0, 0, 2, 1, 2)
TOUCHED = B * len(set(VISITS))
VIEW = fr.Params(
    {"vector": jnp.zeros(D)}, {"w": jnp.zeros(2)}, {"vector": jnp.zeros((B, D)), "bias": jnp.zeros(B)}
)
GRADIENTS = (1e-4, 1.0, 1e3)

# Arguments of rules that a single rate of .05 does not make.
ARGUMENTS: dict[str, Callable[[Any], Any]] = {
    "adaptive_grad_clip": lambda f: optax.chain(f(10.0), optax.sgd(0.1)),
    "add_decayed_weights": lambda f: optax.chain(f(0.1), optax.sgd(0.1)),
    "add_noise": lambda f: optax.chain(optax.sgd(0.1), f(1e-6, 0.5, 0)),
    "apply_every": lambda f: f(2),
    "apply_if_finite": lambda f: f(optax.adam(0.05), 3),
    "chain": lambda f: f(optax.scale_by_adam(), optax.scale(-0.05)),
    "clip": lambda f: optax.chain(f(0.5), optax.sgd(0.05)),
    "clip_by_block_rms": lambda f: optax.chain(f(50.0), optax.sgd(0.05)),
    "clip_by_global_norm": lambda f: optax.chain(f(0.5), optax.sgd(0.05)),
    "conditionally_mask": lambda f: f(optax.adam(0.05), lambda step, **_: step > 2),
    "conditionally_transform": lambda f: f(optax.adam(0.05), lambda step, **_: step > 2),
    "dpsgd": lambda f: f(0.05, 1.0, 0.1, 0),
    "ema": lambda f: optax.chain(f(0.9), optax.sgd(0.05)),
    "flatten": lambda f: f(optax.adam(0.05)),
    "freeze": lambda f: optax.chain(f(fr.Params(True, False, False)), optax.sgd(0.05)),
    "inject_hyperparams": lambda f: f(optax.adam)(learning_rate=0.05),
    "lookahead": lambda f: f(optax.sgd(0.05), 3, 0.5),
    "masked": lambda f: f(optax.adam(0.05), lambda params: jax.tree.map(lambda x: x.ndim > 1, params)),
    "mechanize": lambda f: f(optax.sgd(0.05)),
    "named_chain": lambda f: f(("a", optax.scale_by_adam()), ("b", optax.scale(-0.05))),
    "sam": lambda f: f(optax.sgd(0.05), optax.sgd(0.05)),
    "schedule_free": lambda f: f(optax.sgd(0.05), 0.05),
    "split_real_and_imaginary": lambda f: f(optax.adam(0.05)),
    "trace": lambda f: optax.chain(f(0.9), optax.sgd(0.05)),
    **{
        name: lambda f: optax.chain(f(), optax.sgd(0.05))
        for name in (
            "centralize",
            "identity",
            "normalize",
            "normalize_by_update_norm",
            "set_to_zero",
            "zero_nans",
        )
    },
    "keep_params_nonnegative": lambda f: optax.chain(optax.sgd(0.1), f()),
}
CHAINS = {
    "small lamb": optax.lamb(5e-5),
    "small adafactor": optax.adafactor(1e-4),
    "small fromage": optax.fromage(1e-5),
    "adam, then a global norm": optax.chain(optax.adam(0.05), optax.clip_by_global_norm(0.5)),
    "adam, then a norm that is never reached": optax.chain(optax.adam(0.05), optax.clip_by_global_norm(1e4)),
    "momentum, then a block norm": optax.chain(
        optax.trace(0.9), optax.clip_by_block_rms(1e3), optax.sgd(1e-3)
    ),
    "a global norm, then momentum": optax.chain(
        optax.clip_by_global_norm(0.5), optax.sgd(0.05, momentum=0.9)
    ),
    "decay, then a global norm": optax.chain(
        optax.add_decayed_weights(0.1), optax.clip_by_global_norm(10.0), optax.sgd(0.05)
    ),
    "FedProx, then a global norm": optax.chain(
        fr.client.proximal(0.5), optax.clip_by_global_norm(10.0), optax.sgd(0.05)
    ),
    "FedProx": optax.chain(fr.client.proximal(0.5), optax.adam(0.05)),
    "several steps": optax.MultiSteps(optax.adam(0.05), 3).gradient_transformation(),
    "decay inside Adam": optax.chain(optax.add_decayed_weights(0.1), optax.adam(0.05)),
    "Nesterov": optax.sgd(0.05, momentum=0.9, nesterov=True),
    "lamb after a warm-up": optax.conditionally_transform(optax.lamb(0.05), lambda step, **_: step > 8),
    "lamb for small tables": optax.multi_transform(
        {"small": optax.sgd(0.05), "large": optax.lamb(1e-4)},
        lambda params: jax.tree.map(lambda x: "small" if x.size < 100 else "large", params),
    ),
    "factored moments": optax.chain(
        optax.scale_by_factored_rms(min_dim_size_to_factor=2), optax.scale(-1e-4)
    ),
    "trust ratio": optax.chain(optax.sgd(1e-4), optax.scale_by_trust_ratio()),
    "Adam by a cosine": optax.adam(optax.cosine_decay_schedule(0.1, 20)),
}
# What is recorded: these, at least, are accepted or refused (some versions of optax have more); these decay rows.
DECAYING = {"adamaxw", "adamw", "nadamw", "lion", "add_decayed_weights", "decay inside Adam"}
ACCEPTED = DECAYING.union(
    [
        "adabelief",
        "adadelta",
        "adagrad",
        "adam",
        "adamax",
        "amsgrad",
        "apply_every",
        "apply_if_finite",
        "centralize",
        "chain",
        "clip",
    ],
    [
        "clip_by_global_norm",
        "ema",
        "identity",
        "inject_hyperparams",
        "masked",
        "nadam",
        "optimistic_gradient_descent",
        "radam",
    ],
    ["rmsprop", "rprop", "sgd", "sign_sgd", "trace", "zero_nans", "FedProx", "Nesterov"],
    ("a global norm, then momentum", "several steps", "Adam by a cosine"),
)
REFUSED = {
    *[
        "adafactor",
        "adaptive_grad_clip",
        "add_noise",
        "clip_by_block_rms",
        "dog",
        "dowg",
        "flatten",
        "fromage",
        "lamb",
        "lars",
        "lbfgs",
    ],
    *["keep_params_nonnegative", "muon", "novograd", "polyak_sgd", "prodigy", "sm3", "yogi"],
    *("small lamb", "small adafactor", "small fromage", "lamb after a warm-up", "lamb for small tables"),
    *("adam, then a global norm", "adam, then a norm that is never reached", "momentum, then a block norm"),
    *("decay, then a global norm", "FedProx, then a global norm", "factored moments", "trust ratio"),
}
ALIASES = {"named_chain", "noisy_sgd", "optimistic_adam_v2", "conditionally_mask", "split_real_and_imaginary"}


def _rules() -> Iterator[tuple[str, optax.GradientTransformation]]:
    """Whatever optax calls a rule, and chains; `scale_by_...` are parts of others, as are the aliases."""
    for module in (optax, optax.contrib):
        for name in dir(module):
            factory = getattr(module, name)
            if name.startswith(("_", "scale", "tree")) or name in ALIASES or not callable(factory):
                continue
            try:
                rule = ARGUMENTS.get(name, lambda f: f(0.05))(factory)
            except Exception:  # noqa: S112  # not a rule, or one that cannot be made of a rate
                continue
            if isinstance(rule, optax.GradientTransformation):
                yield name, rule
    yield from CHAINS.items()


def _gradient(params: fr.Params, rows: Any, size: float) -> fr.Params:
    """Of a logistic model of the batch's rows [B, ...], whose labels alternate."""
    user, extra = params.private["vector"], params.shared["w"]
    vectors, biases = rows["vector"], rows["bias"]
    labels = np.arange(B) % 2
    errors = (1 + np.tanh((vectors @ user + biases + extra.sum()) / 2)) / 2 - labels
    rows = {"vector": np.outer(errors, user), "bias": errors}
    grad = fr.Params({"vector": errors @ vectors}, {"w": np.full(2, errors.sum())}, rows)
    return jax.tree.map(lambda g: np.asarray(size * g, np.float32), grad)


def _start() -> fr.Params:
    rng = np.random.default_rng(7)
    return jax.tree.map(
        lambda x: np.asarray(
            rng.normal(size=(NUM_ITEMS, *x.shape[1:]) if x.shape[:1] == (B,) else x.shape), np.float32
        ),
        VIEW,
    )


def _densely(rule: optax.GradientTransformation, size: float) -> fr.Params:
    """Train the whole table."""
    update, params = jax.jit(rule.update), _start()
    state = rule.init(params)
    for visit in VISITS:
        batch = slice(visit * B, (visit + 1) * B)
        grad = _gradient(params, jax.tree.map(lambda x, b=batch: x[b], params.tables), size)
        tables = jax.tree.map(np.zeros_like, params.tables)
        for name, rows in grad.tables.items():
            tables[name][batch] = rows
        updates, state = update(grad._replace(tables=tables), state, params)
        params = jax.tree.map(np.asarray, optax.apply_updates(params, updates))
    return params


def _by_rows(rule: optax.GradientTransformation, size: float) -> fr.Params:
    """Train rows as they are visited, which then catch up with what they have missed."""
    update, params = jax.jit(rule.update), _start()
    dense = params._replace(tables=None)
    state = rule.init(dense)
    rows = {
        visit: jax.tree.map(lambda x, v=visit: x[v * B : (v + 1) * B], params.tables) for visit in set(VISITS)
    }
    states = {visit: rule.init(fr.Params(None, None, rows[visit])) for visit in rows}
    done = dict.fromkeys(rows, 0)

    def catch_up(visit: int, step: int) -> None:
        for _ in range(done[visit], step):
            here = fr.Params(None, None, rows[visit])
            updates, states[visit] = update(jax.tree.map(np.zeros_like, here), states[visit], here)
            rows[visit] = jax.tree.map(np.asarray, optax.apply_updates(here, updates)).tables
        done[visit] = step

    for step, visit in enumerate(VISITS):
        catch_up(visit, step)
        joint = dense._replace(tables=rows[visit])
        updates, new = update(_gradient(joint, rows[visit], size), join_state(state, states[visit]), joint)
        joint = jax.tree.map(np.asarray, optax.apply_updates(joint, updates))
        dense, rows[visit] = joint._replace(tables=None), joint.tables
        state, states[visit] = split_state(new)
        done[visit] = step + 1
    tables = jax.tree.map(np.copy, params.tables)
    for visit in states:
        catch_up(visit, len(VISITS))
        for name, leaf in rows[visit].items():
            tables[name][visit * B : (visit + 1) * B] = leaf
    return dense._replace(tables=tables)


def _touched(params: fr.Params) -> fr.Params:
    return params._replace(tables=jax.tree.map(lambda x: x[:TOUCHED], params.tables))


def _outcome(name: str, rule: optax.GradientTransformation) -> tuple[str, tuple[float, float] | None]:
    """How far training by rows is from dense training, for how far that went, and how far untouched rows went."""
    with jax.ensure_compile_time_eval():  # where the trial has its programs
        try:
            try_optimizer(rule, VIEW)
        except ValueError:
            return name, None
        start = _start()
        dense = [_densely(rule, size) for size in GRADIENTS]
        by_rows = [_by_rows(rule, size) for size in GRADIENTS]
    moved = jax.tree.map(
        lambda before, after: np.abs(after - before)[TOUCHED:].max(), start.tables, dense[1].tables
    )
    errors = [_share(_touched(start), _touched(a), _touched(b)) for a, b in zip(dense, by_rows, strict=True)]
    return name, (max(errors), max(jax.tree.leaves(moved)))


def _share(start: fr.Params, dense: fr.Params, by_rows: fr.Params) -> float:
    """The largest difference of a leaf, for how far its dense training went."""

    def share(start: np.ndarray, dense: np.ndarray, by_rows: np.ndarray) -> float:
        return float(np.abs(dense - by_rows).max() / max(np.abs(dense - start).max(), 1e-9))

    return max(jax.tree.leaves(jax.tree.map(share, start, dense, by_rows)))


def test_no_rule_of_optax_is_accepted_and_wrong():
    """Accepted rules train a client's rows as dense training does, and move others at most by decay."""
    outcomes = dict(map(_outcome, *zip(*_rules(), strict=True)))
    assert {name for name, outcome in outcomes.items() if outcome is None} >= REFUSED
    accepted = {name: outcome for name, outcome in outcomes.items() if outcome is not None}
    assert set(accepted) >= ACCEPTED
    assert {name for name, (error, _) in accepted.items() if not error < 1e-2} == set()
    assert {name for name, (_, moved) in accepted.items() if moved > 1e-6} & ACCEPTED == DECAYING
