"""Plain-numpy references of the attacks that promote items, for matrix factorisation with item biases.

Everything is float64 and loops; a row is an item's bias and vector, as the leaves are laid end to end.
"""

import itertools

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def pull_users(users, vectors, biases, targets):
    """Gradient of the mean over users and targets of -log sigmoid(u . v_t + b_t), in the targets' rows."""
    vector, bias = np.zeros((len(targets), vectors.shape[1])), np.zeros(len(targets))
    for u in users:
        for n, t in enumerate(targets):
            miss = 1 - sigmoid(u @ vectors[t] + biases[t])
            vector[n] -= miss * u / (len(users) * len(targets))
            bias[n] -= miss / (len(users) * len(targets))
    return vector, bias


def train_user(user, vectors, biases, targets, rate, label):
    """One step of a user towards (label 1) or away from (-1) the targets."""
    gradient = np.zeros_like(user)
    for t in targets:
        gradient -= label * (1 - sigmoid(label * (user @ vectors[t] + biases[t]))) * vectors[t] / len(targets)
    return user - rate * gradient


def mine(tables, targets, count):
    """The items, no targets, whose rows [I, W] moved most over a list of tables, most moved first."""
    moved = sum(np.linalg.norm(new - old, axis=1) for old, new in itertools.pairwise(tables))
    moved = np.where(np.isin(np.arange(len(moved)), targets), -1.0, moved)
    return np.argsort(-moved, kind="stable")[:count]


def cosine_gradient(rows, liked, tau):
    """Gradient of PIECK-IPE's loss in rows [n, W], by central differences of a loop over popular rows [s, W]."""
    size = len(liked)

    def loss(rows):
        value = 0.0
        for row in rows:
            sides: dict[bool, list[float]] = {True: [], False: []}
            for k, other in enumerate(liked):
                weight = (size - k) / (size * (size + 1) / 2)
                close = weight * row @ other / np.linalg.norm(row) / np.linalg.norm(other)
                sides[bool(close > 0)].append(close)
            value -= tau * sum(np.mean(side) for side in sides.values() if side)
        return value

    gradient = np.zeros_like(rows)
    for place in np.ndindex(*rows.shape):
        step = np.zeros_like(rows)
        step[place] = 1e-6
        gradient[place] = (loss(rows + step) - loss(rows - step)) / 2e-6
    return gradient


def margins_gradient(users, vectors, biases, targets, public, real):
    """Gradient of FedRecAttack's margins in all rows [I, 1 + D], user by user; `public` are pairs."""
    gradient = np.zeros((len(vectors), vectors.shape[1] + 1))
    for number, u in enumerate(users):
        met = {item for who, item in public if who == number}
        barred = met | set(targets)
        scores = vectors @ u + biases
        best = sorted(set(range(len(vectors))) - barred, key=lambda i: -scores[i])[:10]
        for t in targets:
            if not real[number] or t in met:
                continue
            rival = best.pop()
            gap = scores[rival] - scores[t]
            slope = 1.0 if gap >= 0 else np.exp(gap)
            for item, sign in ((rival, 1), (t, -1)):
                gradient[item] += sign * slope * np.append(1.0, u)
    return gradient


def send_in_turn(gradient, chosen, present, norm):
    """What each attacker sends of what those before it have left, rows clipped; without noise."""
    left, sent = gradient.copy(), []
    for rows, there in zip(chosen, present, strict=True):
        mine_ = left[rows] * np.minimum(1, norm / np.linalg.norm(left[rows], axis=1))[:, None]
        sent.append(mine_)
        if there:
            left[rows] -= mine_
    return np.array(sent)


def adam_step(users, gradient, rate):
    """Adam's first step."""
    return users - rate * gradient / (np.abs(gradient) + 1e-8)
