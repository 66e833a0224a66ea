"""Plain-numpy reference of SCAFFOLD (Karimireddy et al. 2020, algorithm 1, option II), every row in every step."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from tests.references.rounds import Client, Setting, Tree, add_up, combine, regularised


class State(NamedTuple):
    """What a run carries."""

    x: Tree  # the server's tables
    control: Tree  # c
    private: list[Tree]
    controls: list[Tree]  # c_i


def train_client(setting: Setting, state: State, client: Client) -> tuple[Tree, Tree, Tree]:
    """Lines 7 to 13: the private leaves, y_i, and c_i+."""
    private, y, turns = state.private[client.id], state.x, 0
    own_control = state.controls[client.id]
    for batch in client.batches * setting.epochs:
        own, _, grads = regularised(setting, private, {}, y, batch)
        y = combine(
            lambda w, g, mine, c: w - setting.rate * (g - mine + c), y, grads, own_control, state.control
        )
        private = combine(lambda p, g: p - setting.rate * g, private, own)
        turns += 1
    new = combine(
        lambda mine, c, x, w: mine - c + (x - w) / (turns * setting.rate),
        own_control,
        state.control,
        state.x,
        y,
    )
    return private, y, new


def run_round(
    setting: Setting, state: State, cohort: Sequence[Client], global_rate: float, num_clients: int
) -> State:
    """Lines 15 to 17: x + eta_g / |S| sum (y_i - x), and c + 1 / N sum (c_i+ - c_i)."""
    private, controls, moved, changed = list(state.private), list(state.controls), [], []
    for client in cohort:
        private[client.id], y, new = train_client(setting, state, client)
        moved.append(combine(np.subtract, y, state.x))
        changed.append(combine(np.subtract, new, state.controls[client.id]))
        controls[client.id] = new
    x = combine(np.add, state.x, add_up(moved, [global_rate / len(cohort)] * len(cohort)))
    control = combine(np.add, state.control, add_up(changed, [1 / num_clients] * len(cohort)))
    return State(x, control, private, controls)
