"""Plain-numpy reference of FedNova's aggregation (Wang et al. 2020, eq. 5), a_i written out step by step."""

from collections.abc import Sequence

import numpy as np

from tests.references.rounds import Sent, Setting, Tree, add_up, combine


def accumulation(setting: Setting, steps: int) -> np.ndarray:
    """a_i: how much of the gradient of each of tau_i local steps is in the client's change.

    With momentum a step's gradient counts in every later step too, decayed by rho each time; with the proximal
    term every later step takes away a share eta mu.
    """
    vector = np.zeros(steps)
    for k in range(steps):
        for later in range(k, steps):
            vector[k] += setting.momentum ** (later - k)
    shrink = (1 - setting.rate * setting.prox) ** np.arange(steps)[::-1]
    return vector * shrink if setting.prox else vector


def by_letter(setting: Setting, sent: Sequence[Sent]) -> Tree:
    """tau_eff sum_i p_i delta_i / |a_i|_1, with p_i = n_i / n and tau_eff = sum_i p_i |a_i|_1."""
    reach = [np.abs(accumulation(setting, s.steps)).sum() for s in sent]
    n = sum(s.client.examples for s in sent)
    share = [s.client.examples / n for s in sent]
    effective = sum(p * a for p, a in zip(share, reach, strict=True))
    weights = [effective * p / a for p, a in zip(share, reach, strict=True)]
    return add_up([(s.shared, s.tables) for s in sent], weights)


def per_row(setting: Setting, sent: Sequence[Sent]) -> Tree:
    """The same for dense leaves; for a row p_i and tau_eff (the harmonic mean of |a_i|_1) over its touchers."""
    shared, tables = by_letter(setting, sent)
    tables = combine(np.zeros_like, tables)
    for row in range(len(sent[0].touched)):
        own = [s for s in sent if s.touched[row]]
        n = sum(s.client.examples for s in own)
        reach = [np.abs(accumulation(setting, s.steps)).sum() for s in own]
        effective = (
            1 / sum(s.client.examples / n / a for s, a in zip(own, reach, strict=True)) if own else 0.0
        )
        for s, a in zip(own, reach, strict=True):
            for name, table in tables.items():
                table[row] += effective * s.client.examples / n / a * s.tables[name][row]
    return shared, tables
