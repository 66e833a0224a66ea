"""Core types: what every part of the simulator passes to every other part.

A federated algorithm is **one client's work, written for one client**; everything that makes it federated is a
value passed to `federate`. Nothing in a `ClientWork` has a client axis: the engine adds it with `vmap`.

Axis legend, used everywhere:

======  =======================================================================
`N`     clients (users)
`C`     cohort of a round
`L`     lanes: the vmap axis, on which the cohort's clients run one after another
`B`     item rows in one local batch (positives and negatives together)
`I`     items
`E`     local epochs
`D`     embedding width
`K`     ranking cut-off
======  =======================================================================

A row id equal to `I` is an empty slot: reading it gives 0, writing it does nothing (see `tables`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax

PyTree = Any
Key = jax.Array


class Params(NamedTuple):
    """A client's view of the parameters, split by where they live."""

    private: PyTree  # this client's own leaves; they never leave it
    shared: PyTree  # dense leaves, the same on every client
    tables: PyTree  # item-indexed leaves [B, ...]: the rows that this local batch touches


class Server(NamedTuple):
    """The global model: all that the server holds and sends."""

    shared: PyTree  # dense leaves
    tables: PyTree  # item-indexed leaves [I, ...]


class Client(NamedTuple):
    """Who one client is in one round: enough to name each of its local batches."""

    id: jax.Array  # int32[]
    offset: jax.Array  # int32[], where its examples start in the population
    num_examples: jax.Array  # int32[]
    key: jax.Array  # uint32[2], fold_in(fold_in(client stream, round), id)


class Batch(NamedTuple):
    """One local batch of one client."""

    ids: jax.Array  # int32[B], the item rows it touches, each id at most once; I = empty slot
    data: PyTree  # what the loss needs besides the rows, leaves [B, ...]


class Rows(NamedTuple):
    """The rows of one local batch as a client holds them, with their optimizer memory."""

    values: PyTree  # leaves [B, ...]
    memory: PyTree  # optimizer state of these rows; leaves [B, ...] or scalars


class StepInfo(NamedTuple):
    """What one local step reports; read and dropped, never carried on."""

    loss: jax.Array  # float32[], summed over the batch's examples
    examples: jax.Array  # float32[], number of examples in the batch


class Update(NamedTuple):
    """All that one client sends to the server. There is no field for anything private."""

    shared: PyTree  # dense deltas
    ids: jax.Array  # int32[R], touched rows, I = empty slot
    rows: PyTree  # row deltas, leaves [R, ...]
    weight: jax.Array  # float32[]


class LocalBatches(NamedTuple):
    """How a client's data is cut into local batches: a pure function of (client, t).

    Contract: batch `t` names the same rows in every local epoch of a round, and no row stands in two batches.
    So a row is visited once per epoch, and one client's rows never collide. `num_batches` is integer arithmetic
    only: it is called with arrays, and with a Python integer to size the lanes' working rows.
    """

    num_batches: Callable[[Any], Any]  # number of examples -> local batches in an epoch
    batch: Callable[[Client, Any, jax.Array], Batch]  # (client, population, t) -> Batch


class Part(NamedTuple):
    """Which share of some work a device does."""

    which: jax.Array | int  # int32[], 0 to `of` - 1
    of: int  # shares in all


class ClientWork(NamedTuple):
    """One client's local training, as pure functions for ONE client.

    The cut into small functions is what lets the engine run clients of unequal length on lanes: it calls
    `start` when a client enters a lane, `touch` when a batch's rows are first seen, `step` once per local
    batch, `idle` for every step in which the client trained on another batch, and `finish` at the end.
    """

    batches: LocalBatches
    epochs: int
    start: Callable[[Key, PyTree, PyTree], PyTree]  # (key, private, shared) -> local
    touch: Callable[[PyTree], Rows]  # global row values -> Rows, before any training
    step: Callable[[PyTree, Rows, Batch], tuple[PyTree, Rows, StepInfo]]
    idle: Callable[[Rows], Rows] | None  # None: rows rest while other batches train (SGD, Adagrad)
    finish: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]  # (local, shared) -> private, shared delta
    rests: Callable[[Params], bool] | None = None  # (shapes of one client's view) -> `idle` does nothing
    made_of: tuple[Callable, optax.GradientTransformation] | None = (
        None  # loss and optimizer, if it descends one
    )
    # (local, rows after training, batch, global rows) -> what is sent for each row, leaves [B, ...], of any
    # structure; None: trained rows minus global rows
    send: Callable[[PyTree, Rows, Batch, PyTree], PyTree] | None = None
    # (population, ids int32[C], weights float32[C], new private leaves [C, ...], part) -> leaves [I, ...]: a
    # shorter way to the weighted sums of what `send` gives for whole histories, where nobody looks at single
    # updates; whoever changes `send`, `step` or the batches sets it to None
    sums: Callable[[Any, jax.Array, jax.Array, PyTree, Part], PyTree] | None = None


Score = Callable[[PyTree, Server], jax.Array]


class Model(NamedTuple):
    """What is learnt: how it starts and how it scores."""

    init_private: Callable[[Key], PyTree]  # one client's private leaves
    init_server: Callable[[Key, Any], Server]  # (key, population) -> global parameters
    score: Score | None = None  # (private, server) -> float32[I], for one client; None: not a recommender
    # what a client does before it is scored: `finish` gives the private leaves that `score` reads, nothing is sent
    represent: ClientWork | None = None
    rates: bool = False  # whether scores are predicted ratings
    # (key, global model) -> further private leaves, by name, with which all clients start alike
    init_alike: Callable[[Key, Server], dict[str, PyTree]] | None = None


class Totals(NamedTuple):
    """Weighted sums over a cohort: all that the server learns from a round."""

    server: Server  # sum of weight * delta, the shape of what the clients send
    weight: jax.Array  # float32[], sum of the weights
    row_weight: jax.Array | None  # float32[I], sum of the weights of the clients that touched a row
    facts: PyTree = ()  # sums of `Aggregator.facts`
    heat: jax.Array | None = None  # float32[I], clients of the whole population that have a row in their data
    clients: jax.Array | None = None  # float32[], N: clients of the whole population that have data


class Stack(NamedTuple):
    """A cohort's updates side by side, for aggregators that are no sums. Memory grows with C x I."""

    server: Server  # deltas, leaves [C, ...]; 0 where a client did not take part or did not touch a row
    sent: jax.Array  # bool[C], who took part
    touched: jax.Array  # bool[C, I], who sent which row
    weight: jax.Array  # float32[C]


class FixedPoint(NamedTuple):
    """Sums of integers: value x 2^bits, rounded, so that the order of summation leaves no trace."""

    bits: int
    limit: float  # a client's weighted delta is cut off at +-limit, so that no sum can wrap
    capacity: int  # the most clients of a round for which that holds
    modulus: int = 32  # b: no sum reaches 2^(b - 1), so that sums modulo 2^b are the sums

    def encode(self, x: jax.Array) -> jax.Array:
        """Integers int32 of weighted deltas; beyond the limit they are cut off, and no number is 0."""
        return jnp.round(jnp.clip(jnp.nan_to_num(x), -self.limit, self.limit) * 2.0**self.bits).astype(
            jnp.int32
        )

    def decode(self, whole: jax.Array) -> jax.Array:
        """Floats again, of sums int32."""
        return whole.astype(jnp.float32) * 2.0**-self.bits


class Mixture(NamedTuple):
    """Weights of the clients that the server learns from their losses, and carries from round to round."""

    init: Callable[[jax.Array], PyTree]  # examples of every client, int32[N] -> what the server carries
    # (carried, ids int32[C], who takes part bool[C]) -> float32[C], each client's weight
    weigh: Callable[[PyTree, jax.Array, jax.Array], jax.Array]
    # (carried, ids, who took part, their losses float32[C]) -> carried
    learn: Callable[[PyTree, jax.Array, jax.Array, jax.Array], PyTree]


class Aggregator(NamedTuple):
    """How updates become one: each client's weight, and what is made of the sums, or of all of them."""

    weight: Callable[[jax.Array], jax.Array]  # number of examples -> float32[]
    finish: Callable[[Any], Server]  # of `Totals`, or of a `Stack`
    per_row: bool = False  # whether `finish` needs `Totals.row_weight`
    stacked: bool = False  # whether `finish` takes a `Stack`
    fixed: FixedPoint | None = None  # sum integers instead of floats
    facts: Callable[[jax.Array], PyTree] | None = (
        None  # number of examples -> leaves [], summed over the cohort
    )
    row_factor: Callable[[PyTree], jax.Array] | None = (
        None  # rows [R, ...] -> float32[R], weighs rows and counts
    )
    heated: bool = False  # whether `finish` needs `Totals.heat` and `Totals.clients`
    # (the run's key of noise, rounds done, aggregate) -> what is added to it
    noise: Callable[[Key, jax.Array, Server], Server] | None = None
    norm: float | None = None  # the L2 norm that no client may exceed, for that noise to hide it
    bands: int = (
        1  # consecutive rounds in which a client may take part once, for noise that spans rounds to hide it
    )
    least: int = 1  # clients that a round needs: with fewer, its step is not taken
    # (mean loss, squared norm of what is sent) -> factor on one client's update, and a fact float32[] that is
    # summed, by weight, into `Totals.facts`
    by_loss: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]] | None = None
    mixture: Mixture | None = None  # further weights, which the server learns

    @property
    def by_row(self) -> bool:
        """Whether it treats each item row by who touched it."""
        return self.per_row or self.heated or self.row_factor is not None

    @property
    def hears_losses(self) -> bool:
        """Whether clients also send their mean loss."""
        return self.by_loss is not None or self.mixture is not None


class Wire(NamedTuple):
    """What one client's update costs to send; rows may be a mean over clients."""

    rows: float  # table rows that are sent
    row_values: float  # numbers in a row
    dense_values: float  # numbers outside of tables
    value_bits: float = 32.0  # of a number
    id_bits: float = 0.0  # of a row's id; 0 where all rows are sent, in order
    header_bits: float = 0.0  # scales, norms and seeds

    @property
    def bits(self) -> float:
        """All of it."""
        values = self.rows * self.row_values + self.dense_values
        return values * self.value_bits + self.rows * self.id_bits + self.header_bits


class Bound(NamedTuple):
    """What is known of one client's contribution, whatever its data: what an accountant may rely on."""

    norm: float | None = None  # L2, over all rows and dense leaves; None: not bounded
    deviation: float = 0.0  # of the Gaussian noise that the client has added to every number that it sends
    after: tuple[str, ...] = ()  # the elements so far


class Transform(NamedTuple):
    """What a client does to its whole update before it sends it, written for ONE client."""

    name: str
    update: Callable[[Key, Update, Server], Update]  # (key, update, global model) -> what is sent
    # squared norm -> factor, for transforms that only scale by the norm: then no whole update is put together
    scale: Callable[[jax.Array], jax.Array] | None = None
    wire: Callable[[Wire], Wire] | None = None  # what it does to the cost; None: nothing
    # what it does to what is known of the norm, refusing what is unsound; None: nothing is known afterwards
    bound: Callable[[Bound], Bound] | None = None
    # one client's memory between its rounds, of the global model's shapes, and (key, update, memory, global model)
    # -> (what is sent, memory); None: it has none
    init: Callable[[Server], PyTree] | None = None
    remember: Callable[[Key, Update, PyTree, Server], tuple[Update, PyTree]] | None = None


class Sampler(Protocol):
    """Who takes part in a round."""

    def __call__(self, key: Key, num_clients: int) -> tuple[jax.Array, jax.Array]:
        """Return `ids` int32[C] (distinct where alive) and `alive` bool[C]."""


@runtime_checkable
class Informed(Sampler, Protocol):
    """A sampler that looks at the clients. Called as a plain one, it takes them to be alike."""

    @property
    def hears_losses(self) -> bool:
        """Whether it goes by losses, so that clients must send theirs."""

    def draw(self, key: Key, sizes: jax.Array, losses: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return ids and alive; `sizes` int32[N] are examples, `losses` float32[N] the last known (inf: none)."""


class Known(NamedTuple):
    """What the server carries about its clients from round to round; () where it needs nothing."""

    losses: PyTree = ()  # float32[N], each client's when it last took part; inf before it did
    mixture: PyTree = ()  # of `Aggregator.mixture`


class State(NamedTuple):
    """All that a run carries from round to round; a checkpoint is exactly this plus the configuration."""

    round: jax.Array  # int32[], rounds done
    server: Server
    opt_state: optax.OptState  # the server optimizer's
    private: PyTree  # every client's private leaves, [N, ...]
    memory: PyTree = ()  # what every client's transform remembers between its rounds, [N, ...]
    known: Known = Known()  # what the server knows of the clients
    flight: PyTree = ()  # asynchronous rounds: who is under way, and the models that they were sent


class RoundInfo(NamedTuple):
    """What a round reports; read and dropped, never carried on."""

    loss: jax.Array  # float32[], mean local loss per example
    clients: jax.Array  # int32[], clients that took part
    examples: jax.Array  # float32[], examples processed, over all local epochs
    batches: jax.Array  # int32[], local batches that the clients needed
    lane_steps: jax.Array  # int32[], lanes x loop steps that the engine ran
    rows: jax.Array  # float32[], item rows sent up, summed over clients
    update_norm: jax.Array  # float32[], how far the global model moved
    saturated: jax.Array  # int32[], numbers that fixed-point aggregation cut off
    signal: (
        jax.Array
    )  # float32[], norm of the aggregate over that of the noise added to it; inf without noise
    unsound: jax.Array  # int32[], clients left out because a number of theirs was not finite
    skipped: (
        jax.Array
    )  # int32[], 1 where nobody took part or the step was not finite: the model stayed as it was
    missing: jax.Array  # int32[], clients with data that were drawn in vain: they did not arrive, or too late
    # float32[], mean number of the server's steps while a client trained; 0 where rounds are in step
    staleness: jax.Array | float = 0.0


class Plan(NamedTuple):
    """What the engine will do for one population: the automatic choices, and the memory that they need."""

    cohort: int  # C
    devices: int
    lanes: int  # over all devices
    schedule: str  # "lanes" or "waves"
    row_update: str  # a strategy of `row_updates`
    memory: dict[str, int]  # bytes, over all devices, by what they hold
    stream_clients: int | None = None  # S, clients of a part, where rounds run in parts


class Streaming(NamedTuple):
    """A round in parts, for clients whose private leaves and memories wait in host memory (`streaming`).

    The states that these functions take and return hold neither: both are `()`.
    """

    plan: Plan  # of which `stream_clients` is S, clients of a part
    # (key, ids int32[S], server) -> (private leaves, memories) [S, ...] before the first round
    start: Callable[[Key, jax.Array, Server], PyTree]
    # (key, state, population) -> the cohort in whole parts, longest client first
    draw: Callable[[Key, State, Any], Any]
    # (key, state, population, cohort, first slot int32[], (private leaves, memories) [S, ...]) -> `Trained`
    train: Callable[[Key, State, Any, Any, jax.Array, PyTree], Any]
    # (key, state, population, cohort, sums, sound bool[C], losses [C]) -> state, info
    end: Callable[[Key, State, Any, Any, Any, jax.Array, PyTree], tuple[State, RoundInfo]]


class Algorithm(NamedTuple):
    """A federated algorithm as pure functions, as `federate` returns it."""

    init: Callable[[Key, Any], State]  # (key, population) -> State
    round: Callable[[Key, State, Any], tuple[State, RoundInfo]]  # (key, state, population) -> state, info
    score: Score | None  # (private, server) -> float32[I], for one client
    model: Model
    work: ClientWork
    plan: Callable[[Any], Plan]  # population -> what the engine will do
    mesh: jax.sharding.Mesh | None = None
    # population -> `round` in parts, which `simulate` then runs; None: in one piece
    streaming: Callable[[Any], Streaming | None] | None = None


class Budget(Protocol):
    """What a run asks before it goes on, such as `fedjax_rec.privacy.ledger.Ledger`."""

    def would_exceed(self, rounds: int) -> bool:
        """Return whether so many rounds, counted from the start, are more than is allowed."""

    def check(self, rounds: int, done: int = 0) -> None:
        """Raise an error that says how many are allowed, if so many rounds are too many; `done` were allowed."""


class Adversary(NamedTuple):
    """Malicious clients: what becomes of the clients' work, and what the algorithm must carry for them."""

    name: str
    wrap: Callable[[ClientWork], ClientWork]
    # (algorithm, its sampler) -> the algorithm with what colluding clients know between rounds; None: as it is
    join: Callable[[Algorithm, Sampler], Algorithm] | None = None
