"""Runs that want to go on from the checkpoints of another one: refused by the name of what differs."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fedjax_rec as fr
from experiments.faults.registry import Outcome, Setting, Tally, fault, tally
from experiments.faults.work import EVERY, RATE, Work, copy, reference, run, toy, work
from fedjax_rec.seal import seal
from fedjax_rec.steps import SCHEMA, Meta, step_paths

Change = Callable[[Work, Path], tuple[Work, dict[str, Any], dict[str, Any]]]  # work, of simulate, facts


def _options(**options: Any) -> Change:
    return lambda one, _: (one, options, {})


def _facts(**facts: Any) -> Change:
    return lambda one, _: (one, {}, facts)


def _algorithm(**settings: Any) -> Change:
    def change(one: Work, _: Path) -> tuple[Work, dict, dict]:
        return one._replace(algorithm=_again(one, **settings)), {}, {}

    return change


def _again(one: Work, rate: float = RATE, dim: int = 4) -> fr.Algorithm:
    """The algorithm with another setting."""
    if one.algorithm.score is None:
        return toy(rate, dim)
    return fr.fedmf(dim=dim, cohort=12, lanes=4, learning_rate=rate)


def _other_data(one: Work, _: Path) -> tuple[Work, dict, dict]:
    """One event less or other: same sizes."""
    if isinstance(one.data, fr.Population):
        ratings = one.data.examples["ratings"].at[0].add(1)
        return (
            one._replace(
                data=dataclasses.replace(one.data, examples=one.data.examples | {"ratings": ratings})
            ),
            {},
            {},
        )
    items = one.data.items.copy()
    items[:2] = items[1::-1]
    return one._replace(data=one.data._replace(items=items)), {}, {}


def rewrite(folder: Path, change: Callable[[Meta], Meta]) -> None:
    """Change what every step says of itself, and seal it again: what another version would have written.

    Args:
        folder: of checkpoints.
        change: of `meta.json`.
    """
    for step in step_paths(folder):
        meta = change(json.loads((step / "meta.json").read_bytes()))
        (step / "meta.json").write_text(json.dumps(meta))
        seal(step)


def to_schema_0(meta: Meta) -> Meta:
    """What the first schema held.

    Args:
        meta: of today's schema.

    Returns:
        the same without what came later.
    """
    run = {name: value for name, value in meta["run"].items() if name not in ("stopped", "seconds")}
    return meta | {"schema": 0, "run": run}


def _rewritten(change: Callable[[Meta], Meta]) -> Change:
    def apply(one: Work, folder: Path) -> tuple[Work, dict, dict]:
        rewrite(folder, change)
        return one, {}, {}

    return apply


def _versions(**versions: str) -> Change:
    return _rewritten(lambda meta: meta | {"versions": meta["versions"] | versions})


# what changes -> (the change, the word that must be in the message); refused
REFUSED: dict[str, tuple[Change, str]] = {
    "seed": (_options(seed=1), "seed is 0 in the checkpoint and 1 now"),
    "fewer rounds": (_options(rounds=EVERY), f"rounds={EVERY}"),
    "block": (_options(eval_every=EVERY), "eval_every is 1 in the checkpoint"),
    "patience": (_options(stop=fr.Stop(patience=5)), "patience is None in the checkpoint and 5 now"),
    "width": (_algorithm(dim=5), "is 'float32["),
    "learning rate": (_algorithm(rate=0.11), "the algorithm or one of its settings"),
    "named setting": (_facts(learning_rate=0.11), "learning_rate is None in the checkpoint and 0.11 now"),
    "data": (_other_data, "data hash is"),
    "newer schema": (_rewritten(lambda meta: meta | {"schema": SCHEMA + 1}), f"schema is {SCHEMA + 1}"),
}
# goes on, told if there is a word
TOLD: dict[str, tuple[Change, str]] = {
    "older schema": (_rewritten(to_schema_0), ""),
    "jax": (_versions(jax="0.0.1"), "jax is '0.0.1' in the checkpoint"),
    "devices": (
        _rewritten(lambda meta: meta | {"plan": meta["plan"] | {"devices": 64}}),
        "devices is 64 in the checkpoint",
    ),
}
CHANGES = REFUSED | TOLD


@fault("changed configuration, data, schema, version", times=len(CHANGES), short=len(CHANGES))
def drift(setting: Setting) -> Tally:
    """Refused by name, or gone on from with the change told and the same end."""
    names = list(CHANGES)
    return tally(_one(setting, names[i % len(names)]) for i in range(setting.times))


def _one(setting: Setting, name: str) -> Outcome:
    folder, told = copy(real=setting.real, place=setting.place), list[str]()
    change, word = CHANGES[name]
    one, options, facts = change(work(real=setting.real), folder)
    before = step_paths(folder)
    try:
        end = run(one, folder, facts=facts, tell=told.append, resume=True, **options)
    except ValueError as problem:
        whole = step_paths(folder) == before
        return "survived" if name in REFUSED and word in str(problem) and whole else "lost"
    if name in REFUSED or end != reference(real=setting.real):
        return "silent"
    return "survived" if word in " ".join(told) and bool(word) == bool(told) else "lost"
