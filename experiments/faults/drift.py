"""Runs that want to go on from the checkpoints of another one: refused by the name of what differs."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fedjax_rec as fr
from experiments.faults.registry import Injection, Outcome, Tally, fault, tally
from experiments.faults.workload import EVERY, RATE, Workload, copy_half_done, reference, run, toy, workload
from fedjax_rec.training.checkpoints.seal import seal
from fedjax_rec.training.checkpoints.store import SCHEMA, Meta, list_checkpoints

# (workload, folder of checkpoints) -> workload, options of `simulate`, what must match
Change = Callable[[Workload, Path], tuple[Workload, dict[str, Any], dict[str, Any]]]


def _options(**options: Any) -> Change:
    return lambda task, _: (task, options, {})


def _must_match(**must_match: Any) -> Change:
    return lambda task, _: (task, {}, must_match)


def _algorithm(**settings: Any) -> Change:
    def change(task: Workload, _: Path) -> tuple[Workload, dict, dict]:
        return task._replace(algorithm=_make_again(task, **settings)), {}, {}

    return change


def _make_again(task: Workload, rate: float = RATE, dim: int = 4) -> fr.types.Algorithm:
    """The algorithm with another setting."""
    if task.algorithm.score is None:
        return toy(rate, dim)
    return fr.fedmf(dim=dim, cohort=12, lanes=4, learning_rate=rate)


def _other_data(task: Workload, _: Path) -> tuple[Workload, dict, dict]:
    """Another rating, or two events in another order: same sizes."""
    if isinstance(task.data, fr.Population):
        ratings = task.data.examples["ratings"].at[0].add(1)
        examples = task.data.examples | {"ratings": ratings}
        return task._replace(data=dataclasses.replace(task.data, examples=examples)), {}, {}
    items = task.data.items.copy()
    items[:2] = items[1::-1]
    return task._replace(data=task.data._replace(items=items)), {}, {}


def rewrite(folder: Path, change: Callable[[Meta], Meta]) -> None:
    """Change what every checkpoint says of itself, and seal it again: what another version would have written.

    Args:
        folder: of checkpoints.
        change: of `meta.json`.
    """
    for path in list_checkpoints(folder):
        meta = change(json.loads((path / "meta.json").read_bytes()))
        (path / "meta.json").write_text(json.dumps(meta))
        seal(path)


def _rewritten(change: Callable[[Meta], Meta]) -> Change:
    def apply(task: Workload, folder: Path) -> tuple[Workload, dict, dict]:
        rewrite(folder, change)
        return task, {}, {}

    return apply


def _versions(**versions: str) -> Change:
    return _rewritten(lambda meta: meta | {"versions": meta["versions"] | versions})


# what changes -> (the change, the words that must be in the error); refused
REFUSED: dict[str, tuple[Change, str]] = {
    "seed": (_options(seed=1), "seed is 0 in the checkpoint and 1 now"),
    "fewer rounds": (_options(rounds=EVERY), f"rounds={EVERY}"),
    "block": (_options(eval_every=EVERY), "eval_every is 1 in the checkpoint"),
    "patience": (_options(stop=fr.Stop(patience=5)), "patience is None in the checkpoint and 5 now"),
    "width": (_algorithm(dim=5), "is 'float32["),
    "learning rate": (_algorithm(rate=0.11), "the algorithm or one of its settings"),
    "named setting": (
        _must_match(learning_rate=0.11),
        "learning_rate is None in the checkpoint and 0.11 now",
    ),
    "data": (_other_data, "data hash is"),
    "newer schema": (_rewritten(lambda meta: meta | {"schema": SCHEMA + 1}), f"schema is {SCHEMA + 1}"),
    "older schema": (_rewritten(lambda meta: meta | {"schema": SCHEMA - 1}), f"schema is {SCHEMA - 1}"),
}
# what changes -> (the change, the words that must be in a message); goes on
REPORTED: dict[str, tuple[Change, str]] = {
    "jax": (_versions(jax="0.0.1"), "jax is '0.0.1' in the checkpoint"),
    "devices": (
        _rewritten(lambda meta: meta | {"plan": meta["plan"] | {"devices": 64}}),
        "devices is 64 in the checkpoint",
    ),
}
CHANGES = REFUSED | REPORTED


@fault("changed configuration, data, schema, version", times=len(CHANGES), short=len(CHANGES))
def drift(injection: Injection) -> Tally:
    """Refused by name, or gone on from with a message and the same end."""
    names = list(CHANGES)
    return tally(_go_on(injection, names[i % len(names)]) for i in range(injection.times))


def _go_on(injection: Injection, name: str) -> Outcome:
    folder = copy_half_done(real=injection.real, parent=injection.folder)
    change, words = CHANGES[name]
    task, options, must_match = change(workload(real=injection.real), folder)
    before = list_checkpoints(folder)
    messages: list[str] = []
    try:
        end = run(task, folder, must_match=must_match, on_message=messages.append, resume=True, **options)
    except ValueError as problem:
        whole = list_checkpoints(folder) == before
        return "survived" if name in REFUSED and words in str(problem) and whole else "lost"
    if name in REFUSED or end != reference(real=injection.real):
        return "silent"
    return "survived" if words in " ".join(messages) else "lost"
