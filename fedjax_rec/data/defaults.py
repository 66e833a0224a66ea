"""Settings that follow from the size of the data: one rule for a central method and for its federated twin.

What a penalty, a rate or a weight means depends on how many users, items and events there are, so that a number
that is good on one data set ruins another. The rules below are functions of these three numbers alone, which
are no secret of any client, and both sides call them: `fedals` and `fcf` as central iALS does, `fedease` as
central EASE. Equal settings give equal results (`tests/algorithms`), and so do equal defaults. `fedmf` sums
over a cohort what its twin MF does batch by batch, and so has a rule of its own; `fedncf` has a penalty.
"""

from typing import Any, NamedTuple


class Size(NamedTuple):
    """How much there is to train on, and who does at a time.

    Example:
        >>> Size(943, 1682, 98114).density < 0.07
        True
    """

    num_users: Any  # N, an int; traced where it is counted in a round
    num_items: int  # I
    num_events: Any  # M, an int; traced where it is counted in a round
    cohort: int | None = None  # C, where one was given

    @property
    def density(self) -> Any:
        """Share of the pairs that are events, M / (N I)."""
        return self.num_events / max(self.num_users * self.num_items, 1)


class ALSWeights(NamedTuple):
    """Of the objective of iALS, by the names that both sides give them."""

    regularisation: Any  # reg
    unobserved: Any  # w0, of every pair


class FCFWeights(NamedTuple):
    """Of the objective of FCF."""

    alpha: Any  # confidence of a training pair, beyond the 1 of every pair
    regularisation: Any  # lambda


class MFSettings(NamedTuple):
    """Of `fedmf`, whose rate goes with the other two."""

    dim: int  # D
    num_negatives: int  # of each positive
    learning_rate: float  # of the clients' SGD, whose changes are summed


MIN_COHORT = 200
_MANY_PAIRS = 2.5e8  # half a second of ranking on two cores
_RAREST = 5  # validations, in units of the algorithm's own interval
_FEWEST_VALIDATIONS = 4  # in the least number of rounds
UNOBSERVED_FACTORS = (1 / 30, 10.0)  # of the default w0, where it is searched
ALS_ROUNDS = 12  # of fedals and iALS, before which no patience ends
_ALS_RIDGE = 8.0  # of a mean user: reg (M / N + w0 I)
_SPARSE = 0.0013  # density, below which it falls
_FCF_RIDGE = 3.0  # of everybody, where an own item weighs 1
_FCF_SPARSE = 0.004  # density, below which it falls
_UNOBSERVED_SHARE = 30.0  # what all pairs without an event weigh together, in units of all events
_MANY_EVENTS = 300_000
_MF_RATE = 0.105  # where a cohort visits a mean item once
_MOST_MF_RATE = 0.05
_LONG_HISTORY = 100  # events of a mean user
_OFTEN = 100  # events of a mean item
_PAIR_PENALTY = 5.0  # of clients with one event, if it were not for the most
_MOST_PAIR_PENALTY = 0.05  # with .1 nothing is learnt on check-ins


def default_cohort(num_clients: int) -> int:
    """A tenth of the clients, between 200 and 1,000, and never more than there are.

    Args:
        num_clients: N.

    Returns:
        C.

    Example:
        >>> [default_cohort(n) for n in (50, 943, 6040, 1_000_000)]
        [50, 200, 604, 1000]
    """
    return min(num_clients, max(MIN_COHORT, min(1000, num_clients // 10)))


def default_eval_every(size: Size, own: int, rounds: int) -> int:
    """Rounds between validations: an algorithm's own number, and up to 5 times as many where they are dear.

    A validation ranks N I pairs, which from a few 10^8 on takes longer than the rounds before it: it is then that
    much rarer, but the least number of rounds has four, if it had as many. Who is validated after every round has
    long ones.

    Args:
        size: of the data that are ranked.
        own: the algorithm's number.
        rounds: the least that the run has.

    Returns:
        rounds.

    Example:
        >>> [default_eval_every(Size(29858, 40979, 659365), own, 400) for own in (20, 50, 1)]
        [100, 100, 1]
        >>> default_eval_every(Size(6040, 3706, 988129), 20, 400)
        20
    """
    if own == 1:
        return own
    times = min(_RAREST, max(1, round(size.num_users * size.num_items / _MANY_PAIRS)))
    return max(own, min(times * own, rounds // _FEWEST_VALIDATIONS))


def ease_penalty(size: Size) -> Any:
    """EASE's lambda, sqrt(sqrt(M) M / N): it grows with the events and with the history of a mean user.

    Half the root of M, which fits MovieLens, is three times too much on Gowalla, whose histories are short
    (`docs/baselines.md` has the numbers).

    Args:
        size: of the training data; the numbers of users and events may be traced.

    Returns:
        lambda.

    Example:
        >>> round(ease_penalty(Size(4, 6, 9)), 2), round(ease_penalty(Size(943, 1682, 98114)))
        (2.6, 181)
    """
    users = size.num_users + (size.num_users == 0)  # of nobody it is 0
    history = size.num_events / users
    return (size.num_events**0.5 * history) ** 0.5


def pair_penalty(size: Size) -> float:
    """The penalty of a network that is trained on single pairs, 5 (M / N)^-1.5, and .05 at most.

    It is stricter where histories are short: without one, vectors of clients with 20 events learn these by heart
    (`docs/baselines.md` has the numbers).

    Args:
        size: of the training data.

    Returns:
        L2 on the rows and vectors of a batch, in two digits.

    Example:
        >>> [pair_penalty(size) for size in (Size(6040, 3706, 988129), Size(943, 1682, 98114), Size(9, 9, 90))]
        [0.0024, 0.0047, 0.05]
    """
    history = size.num_events / max(size.num_users, 1)
    return min(_MOST_PAIR_PENALTY, float(f"{_PAIR_PENALTY * max(history, 1.0) ** -1.5:.2g}"))


def als_dim(size: Size) -> int:
    """The width of iALS and `fedals`: 64, and 192 from 300,000 training events on, if a mean item has 100 of them.

    What `fedals` sums takes I D (D + 1) / 2 numbers, which many items with few events each are not worth.

    Args:
        size: of the training data.

    Returns:
        D.

    Example:
        >>> als_dim(Size(943, 1682, 98114)), als_dim(Size(6040, 3706, 988129)), als_dim(Size(29858, 40979, 659365))
        (64, 192, 64)
    """
    wide = size.num_events >= _MANY_EVENTS and size.num_events >= _OFTEN * size.num_items
    return 192 if wide else 64


def als_weights(size: Size, regularisation: Any = None, unobserved: Any = None) -> ALSWeights:
    """The weights of iALS, which depend on each other and on the size of the data.

    The ridge of a mean user, reg (M / N + w0 I), is 8 whatever w0 is, and less below a density of .0013: with one
    reg for all it would grow with the catalogue, by a factor of 20 from MovieLens 100K to Gowalla, until nothing
    is learnt. w0 is proportional to the density: all pairs together weigh 30 times what the events weigh.

    Args:
        size: of the training data.
        regularisation: reg, where it was given.
        unobserved: w0, where it was given; reg then follows from it.

    Returns:
        both.

    Example:
        >>> [f"{x:.3g}" for x in als_weights(Size(943, 1682, 98114))]
        ['0.00248', '1.86']
        >>> [f"{x:.3g}" for x in als_weights(Size(29858, 40979, 659365))]
        ['0.00752', '0.0162']
    """
    if unobserved is None:
        unobserved = _UNOBSERVED_SHARE * size.density
    if regularisation is None:
        ridge = _ALS_RIDGE * min(1.0, size.density / _SPARSE) ** 0.5
        regularisation = ridge / als_ridge_of_one(size, unobserved)
    return ALSWeights(regularisation, unobserved)


def als_ridge_of_one(size: Size, unobserved: Any) -> Any:
    """The ridge of a mean user at reg = 1: M / N + w0 I.

    Args:
        size: of the training data.
        unobserved: w0.

    Returns:
        the ridge; two pairs of weights are as strict if reg times this is the same.

    Example:
        >>> als_ridge_of_one(Size(4, 6, 8), 0.5)
        5.0
    """
    return size.num_events / max(size.num_users, 1) + unobserved * size.num_items


def fcf_weights(size: Size, alpha: Any = None, regularisation: Any = None) -> FCFWeights:
    """The weights of FCF: those of iALS on the scale of an objective in which every pair weighs 1.

    alpha is 1 / w0. lambda is one number for users and items, and so less than iALS's ridge of a mean user would
    be there: 3 alpha, and less below a density of .004, where a mean item has few events.

    Args:
        size: of the training data.
        alpha: where it was given.
        regularisation: lambda, where it was given.

    Returns:
        both.

    Example:
        >>> [f"{x:.3g}" for x in fcf_weights(Size(943, 1682, 98114))]
        ['0.539', '1.62']
    """
    if alpha is None:
        alpha = 1 / als_weights(size).unobserved
    if regularisation is None:
        regularisation = _FCF_RIDGE * min(1.0, size.density / _FCF_SPARSE) ** 0.5 * alpha
    return FCFWeights(alpha, regularisation)


def mf_settings(
    size: Size,
    dim: int | None = None,
    num_negatives: int | None = None,
    learning_rate: float | None = None,
) -> MFSettings:
    """The settings of `fedmf`: a rate that falls where a round's changes of an item add up, and how wide it is.

    What clients change is summed, so that the step of an item grows with its visits in a round. The rate falls
    with the root of those of a mean item, v = C (1 + negatives) M / (N I), with C that of `default_cohort` unless
    given: .105 / sqrt(v), in two digits, and .05 at most, where single users' steps would be too long.

    Width and negatives are 64 and 4; 128 and 8 on many events (as `als_dim` has it) with long histories, 100
    events of a mean user, where more can be learnt of each.

    Args:
        size: of the training data.
        dim: D, where it was given.
        num_negatives: where it was given; the rate then follows from it.
        learning_rate: where it was given.

    Returns:
        all three.

    Example:
        >>> [mf_settings(Size(1000, 1200, 92387)), mf_settings(Size(1835, 41488, 72262)).learning_rate]
        [MFSettings(dim=64, num_negatives=4, learning_rate=0.012), 0.05]
        >>> mf_settings(Size(6040, 3706, 988129))
        MFSettings(dim=128, num_negatives=8, learning_rate=0.0068)
    """
    users = max(size.num_users, 1)
    wide = size.num_events >= _MANY_EVENTS and size.num_events >= _LONG_HISTORY * users
    if dim is None:
        dim = 128 if wide else 64
    if num_negatives is None:
        num_negatives = min(8 if wide else 4, max(size.num_items, 1))
    if learning_rate is None:
        cohort = default_cohort(users) if size.cohort is None else min(size.cohort, users)
        visits = cohort * (1 + num_negatives) * size.density
        learning_rate = min(_MOST_MF_RATE, float(f"{_MF_RATE * max(visits, 1e-9) ** -0.5:.2g}"))
    return MFSettings(dim, num_negatives, learning_rate)
