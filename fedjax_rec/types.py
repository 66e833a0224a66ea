"""Core types: what every part of the simulator passes to every other part.

A federated algorithm is **one client's work, written for one client**; everything that makes it federated is a
value passed to `federate`. Nothing in a `ClientWork` has a client axis: the engine adds it with `vmap`. The axes:

* N clients (users), C the cohort of a round, I items, E local epochs, D the width of an embedding;
* L lanes: the vmap axis, on which the cohort's clients run one after another;
* B item rows in one local batch (positives and negatives together); K the ranking cut-off.

A row id equal to `I` is an empty slot: reading it gives 0, writing it does nothing (see `rows.tables`).
"""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import optax

from fedjax_rec.errors import is_used_up

PyTree = Any
Key = jax.Array
KEY_IMPL = "threefry2x32"  # the kind of key that clients draw from, whatever jax's default is


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
    place: jax.Array | None = None  # int32[], its number in the population, where that is of a cohort alone


class Batch(NamedTuple):
    """One local batch of one client."""

    ids: jax.Array  # int32[B], the item rows it touches, each id at most once; I = empty slot
    data: PyTree  # what the loss needs besides the rows, leaves [B, ...]


class Rows(NamedTuple):
    """The rows of one local batch as a client holds them, with their optimizer state."""

    values: PyTree  # leaves [B, ...]
    opt_state: PyTree  # leaves [B, ...] or scalars


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

    def squared_norm(self) -> jax.Array:
        """Squared L2 norm float32[] of all that the client sends: dense leaves and rows together."""
        leaves = jax.tree.leaves((self.shared, self.rows))
        return sum((jnp.sum(jnp.square(x)) for x in leaves), jnp.float32(0))


class LocalBatches(NamedTuple):
    """How a client's data is cut into local batches: a pure function of (client, t).

    Contract: batch `t` names the same rows in every local epoch of a round, and no row stands in two batches:
    a row is visited once per epoch. `num_batches` is integer arithmetic: a Python integer sizes lanes' rows.
    """

    num_batches: Callable[[Any], Any]  # number of examples -> local batches in an epoch
    batch: Callable[[Client, Any, jax.Array], Batch]  # (client, population, t) -> Batch
    needs_order: bool = False  # whether it takes the order of a client's examples for that of time


class DeviceShare(NamedTuple):
    """Which share of some work a device does."""

    number: jax.Array | int  # int32[], 0 to `total` - 1
    total: int  # shares in all


class Context(NamedTuple):
    """What one client knows of its surroundings while it trains."""

    num_items: int  # I, static
    num_examples: jax.Array  # int32[], of its own
    num_batches: jax.Array  # int32[], local batches that it trains on in an epoch


class ZeroGradient(NamedTuple):
    """What an optimizer does to rows while the client trains on other batches: under a zero gradient."""

    step: Callable[[Rows], Rows]
    is_identity: Callable[[Params], bool]  # (shapes of one client's view) -> whether it leaves rows alone


class RowUpload(NamedTuple):
    """What a client sends for each row instead of its change."""

    # (local, rows after training, batch, global rows) -> leaves [B, ...], of any structure
    send: Callable[[PyTree, Rows, Batch, PyTree], PyTree]
    # (population, ids int32[C], weights float32[C], new private leaves [C, ...], share) -> leaves [I, ...]: a way
    # to weighted sums of what `send` gives for whole histories; who changes `send`, `step` or batches drops it
    sum_by_item: Callable[[Any, jax.Array, jax.Array, PyTree, DeviceShare], PyTree] | None = None
    always_shorter: bool = False  # for any cohort, and not only where an item has many clients

    def without_shortcut(self) -> "RowUpload":
        """The same, summed client by client."""
        return self._replace(sum_by_item=None)


class Descent(NamedTuple):
    """The loss that a client's work descends, and its optimizer."""

    loss: Callable[[Params, Batch], tuple[jax.Array, jax.Array]]  # -> summed loss, number of examples
    optimizer: optax.GradientTransformation


class ClientWork(NamedTuple):
    """One client's local training, as pure functions for ONE client.

    The cut into small functions is what lets the engine run clients of unequal length on lanes: it calls
    `start` when a client enters a lane, `init_rows` when a batch's rows are first seen, `step` once per local
    batch, `end_epoch` after each local epoch but the last, and `finish` at the end.
    """

    batches: LocalBatches
    epochs: int
    start: Callable[[Key, PyTree, PyTree, Context], PyTree]  # (key, private, shared, context) -> local
    init_rows: Callable[[PyTree], Rows]  # global row values -> Rows, before any training
    step: Callable[[PyTree, Rows, Batch, Context], tuple[PyTree, Rows, StepInfo]]
    finish: Callable[[PyTree, PyTree], tuple[PyTree, PyTree]]  # (local, shared) -> private, shared delta
    end_epoch: Callable[[PyTree, Context], PyTree] | None = None  # local -> local
    zero_gradient: ZeroGradient | None = None  # None: rows rest while other batches train
    upload: RowUpload | None = None  # None: trained rows minus global rows
    descent: Descent | None = None  # None: the work is not the descent of one loss
    reads_ids: bool = True  # whether it asks which items its rows are of, or how many items there are
    keeps_rows: bool = True  # whether later epochs need the rows of the first: else they are given zeros


Score = Callable[[PyTree, Server], jax.Array]


class Model(NamedTuple):
    """What is learnt: how it starts and how it scores."""

    init_private: Callable[[Key], PyTree]  # one client's private leaves
    init_server: Callable[[Key, Any], Server]  # (key, population) -> global parameters
    score: Score | None = None  # (private, server) -> float32[I], for one client; None: not a recommender
    # what a client does before it is scored: `finish` gives the private leaves that `score` reads, nothing is sent
    represent: ClientWork | None = None
    predicts_ratings: bool = False  # whether scores are predicted ratings
    # (key, global model) -> further private leaves, by name, the same for all clients
    init_common: Callable[[Key, Server], dict[str, PyTree]] | None = None
    starts_from: str = ""  # what `init_server` takes from the clients' data, which is no secret then


class Totals(NamedTuple):
    """Weighted sums over a cohort, and what an aggregator asks of the whole population beside them."""

    deltas: Server  # sum of weight * delta, the shape of what the clients send
    weight: jax.Array  # float32[], sum of the weights
    row_weight: jax.Array | None  # float32[I], sum of the weights of the clients that touched a row
    client_stats: PyTree = ()  # sums of `Aggregator.client_stats`
    loss_statistic: jax.Array | None = None  # float32[], weighted sum of that of `LossWeighting`
    heat: jax.Array | None = None  # float32[I], clients of the whole population that have a row in their data
    num_clients: jax.Array | None = None  # float32[], N: clients of the whole population that have data


class Stack(NamedTuple):
    """A cohort's updates side by side, for aggregators that are no sums. Memory grows with C x I."""

    deltas: Server  # leaves [C, ...]; 0 where a client did not take part or did not touch a row
    sent: jax.Array  # bool[C], who took part
    touched: jax.Array  # bool[C, I], who sent which row
    weight: jax.Array  # float32[C]


class FixedPoint(NamedTuple):
    """Sums of integers: value x 2^bits, rounded, so that the order of summation leaves no trace."""

    bits: int
    limit: float  # a client's weighted delta is cut off at +-limit, so that no sum can wrap
    capacity: int  # the most clients of a round for which that holds
    modulus: int = 32  # b: no sum reaches 2^(b - 1), so that sums modulo 2^b are the sums

    @property
    def unit(self) -> float:
        """Of what numbers are multiples once they are rounded."""
        return 2.0**-self.bits

    def encode(self, x: jax.Array) -> jax.Array:
        """Integers int32 of weighted deltas; beyond the limit they are cut off, and no number is 0."""
        scaled = jnp.clip(jnp.nan_to_num(x), -self.limit, self.limit) * 2.0**self.bits
        return jnp.round(scaled).astype(jnp.int32)

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


class RowTreatment(NamedTuple):
    """How an aggregator treats each item row by who touched it."""

    weights: bool = False  # whether `finish` needs `Totals.row_weight`
    heat: bool = False  # whether `finish` needs `Totals.heat` and `Totals.num_clients`
    factor: Callable[[PyTree], jax.Array] | None = None  # rows [R, ...] -> float32[R], weighs rows and counts


class LossWeighting(NamedTuple):
    """How an aggregator weighs clients by their losses, which they then send as well."""

    # (mean loss, squared norm of what is sent) -> factor on an update, statistic of `Totals.loss_statistic`
    factor: Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]] | None = None
    mixture: Mixture | None = None  # further weights, which the server learns


class ServerNoise(NamedTuple):
    """Noise that an aggregator adds, and what it hides: it is drawn by the numbers that are accounted for."""

    norm: float  # C, the L2 norm that no client may exceed, for the noise to hide it
    multiplier: float  # z: the standard deviation of the noise on the sum of the updates, over C
    expected: float  # n, by which the sum is divided
    made_for: tuple[Callable, Callable, float]  # `weight`, `finish`, n of its aggregator, and no other
    mixing: tuple[float, ...] = ()  # m, for noise that spans rounds: a number a round; none afterwards
    sampler: "Sampler | None" = None  # who must draw the cohorts, where it was chosen for them

    @property
    def max_rounds(self) -> int | None:
        """Rounds that there is noise for; None: any number."""
        return len(self.mixing) or None


class Aggregator(NamedTuple):
    """How updates become one: each client's weight, and what is made of the sums, or of all of them."""

    weight: Callable[[jax.Array], jax.Array]  # number of examples -> float32[]
    finish: Callable[[Any], Server]  # of `Totals`, or of a `Stack`
    stacked: bool = False  # whether `finish` takes a `Stack`
    fixed: FixedPoint | None = None  # sum integers instead of floats
    client_stats: Callable[[jax.Array], PyTree] | None = None  # number of examples -> leaves [], to be summed
    rows: RowTreatment = RowTreatment()
    losses: LossWeighting | None = None
    noise: ServerNoise | None = None
    min_clients: int = 1  # clients that a round needs: with fewer, its step is not taken (it has no noise)

    @property
    def by_row(self) -> bool:
        """Whether it treats each item row by who touched it."""
        return self.rows != RowTreatment()

    @property
    def loss_factor(self) -> Callable[[jax.Array, jax.Array], tuple[jax.Array, jax.Array]] | None:
        """The factor by a client's loss, if there is one."""
        return None if self.losses is None else self.losses.factor

    @property
    def mixture(self) -> Mixture | None:
        """Weights that the server learns, if it does."""
        return None if self.losses is None else self.losses.mixture


class Sampler(Protocol):
    """Who takes part in a round."""

    def __call__(self, key: Key, num_clients: int) -> tuple[jax.Array, jax.Array]:
        """Return `ids` int32[C] (distinct where alive) and `alive` bool[C]."""


@runtime_checkable
class DataDependentSampler(Sampler, Protocol):
    """A sampler that looks at the clients. Called as a plain one, it takes them to be equal."""

    @property
    def needs_losses(self) -> bool:
        """Whether it goes by losses, so that clients must send theirs."""

    def draw(self, key: Key, sizes: jax.Array, losses: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return ids and alive; `sizes` int32[N] are examples, `losses` float32[N] the last known (inf: none)."""


@runtime_checkable
class CyclicSampler(Sampler, Protocol):
    """A sampler that draws from one group of clients after the other. Called as a plain one, from the first."""

    @property
    def groups(self) -> int:
        """In how many rounds each client may take part once."""

    def draw_round(self, key: Key, num_clients: int, round_: jax.Array | int) -> tuple[jax.Array, jax.Array]:
        """Return ids and alive of a round; `round_` int32[] are the rounds done."""


class Tracked(NamedTuple):
    """What the server keeps about its clients from round to round; () where it needs nothing."""

    losses: PyTree = ()  # float32[N], each client's when it last took part; inf before it did
    mixture: PyTree = ()  # of `Mixture`


class ClientStore(NamedTuple):
    """What clients keep between rounds, N of them or some."""

    private: PyTree  # private leaves [N, ...]
    transform_state: PyTree = ()  # of the transform of their updates, leaves [N, ...]


class State(NamedTuple):
    """All that a run carries from round to round: from it, the rounds go on bit for bit."""

    round: jax.Array  # int32[], rounds done
    server: Server
    opt_state: optax.OptState  # the server optimizer's
    private: PyTree  # every client's private leaves, [N, ...]
    transform_state: PyTree = ()  # of every client's transform, [N, ...]
    tracked: Tracked = Tracked()  # what the server keeps about the clients
    in_flight: PyTree = ()  # asynchronous rounds: who is training, and the models that they were sent
    adversary: PyTree = ()  # what colluding clients know

    def __repr__(self) -> str:
        server, private = jax.tree.map(jnp.shape, (self.server, self.private))
        return f"<State: {server}, private {private}{', used up' * is_used_up(self)}>"

    @property
    def store(self) -> ClientStore:
        """What all clients keep."""
        return ClientStore(self.private, self.transform_state)

    def with_store(self, store: ClientStore) -> "State":
        """The same state of other clients' leaves."""
        return self._replace(private=store.private, transform_state=store.transform_state)


class RoundInfo(NamedTuple):
    """What a round reports; read and dropped, never carried on."""

    loss: jax.Array  # float32[], mean local loss per example
    clients: jax.Array  # int32[], clients that took part
    examples: jax.Array  # float32[], examples processed, over all local epochs
    batches: jax.Array  # int32[], local batches that the clients needed
    lane_steps: jax.Array  # int32[], lanes x loop steps that the engine ran
    rows: jax.Array  # float32[], item rows trained, summed over clients; before a transform adds or drops any
    update_norm: jax.Array  # float32[], how far the global model moved
    saturated: jax.Array  # int32[], numbers that fixed-point aggregation cut off
    signal: jax.Array  # float32[], norm of the aggregate over that of the noise added to it; inf without
    unsound: jax.Array  # int32[], clients left out because a number of theirs was not finite
    skipped: jax.Array  # int32[], 1 where no step was taken: not finite, or too few clients without noise
    missing: jax.Array  # int32[], clients with data that were drawn in vain: they did not arrive, or too late
    staleness: jax.Array | float = 0.0  # float32[], mean steps of the server while a client trained


class Plan(NamedTuple):
    """What the engine will do for one population: the automatic choices, and the memory that they need."""

    cohort: int  # C
    devices: int
    lanes: int  # over all devices
    schedule: str  # "lanes" or "waves"
    row_update: str  # a strategy of `rows.scatter`
    num_bytes: dict[str, int]  # over all devices, by what they hold
    stream_clients: int | None = None  # S, clients of a chunk, where rounds run in chunks
    touched_rows: int | None = None  # about how many a round touches, where it sums and steps these alone
    disk_bytes: int = 0  # of what clients keep, where that waits in files: at most, of all clients
    table_shards: int = 1  # devices that share the rows of an item table


class ChunkedRound(NamedTuple):
    """A round in chunks of clients, whose leaves wait in host memory: in these states `state.store` is empty."""

    plan: Plan  # of which `stream_clients` is S, clients of a chunk
    init_common: Callable[[Key, Server], ClientStore]  # what all clients start alike with
    init_clients: Callable[[Key, jax.Array, ClientStore], ClientStore]  # (key, ids int32[S], that) -> theirs
    draw: Callable[[Key, State, Any], Any]  # -> the cohort in whole chunks, longest client first
    # (key, state, population, cohort, first slot int32[], store [S, ...]) -> the engine's result, sound bool[S]
    train: Callable[[Key, State, Any, Any, jax.Array, ClientStore], tuple[Any, jax.Array]]
    # (key, state, population, cohort, sums, sound bool[C]) -> state, info
    finish: Callable[[Key, State, Any, Any, Any, jax.Array], tuple[State, RoundInfo]]
    touched: Any = None  # `federation.touched.TouchedRows`: then `train` is of touched rows alone


class Mechanism(NamedTuple):
    """What an accountant of privacy must know of the rounds that run: `federate` puts it together."""

    sampler: Sampler | None  # who takes part; None: whoever arrives
    noise: ServerNoise | None = None  # the server's
    client_noise: float = 0.0  # z of what a client adds itself before it sends: deviation over its norm
    made_for: tuple[Any, ...] = ()  # `init`, `round`, `streaming` of its algorithm: others may tell more


class Algorithm(NamedTuple):
    """A federated algorithm as pure functions, as `federate` returns it."""

    init: Callable[[Key, Any], State]  # (key, population) -> State
    round: Callable[[Key, State, Any], tuple[State, RoundInfo]]  # (key, state, population) -> state, info
    score: Score | None  # (private, server) -> float32[I], for one client
    model: Model
    work: ClientWork
    plan: Callable[[Any], Plan]  # population -> what the engine will do
    mesh: jax.sharding.Mesh | None = None
    table_mesh: jax.sharding.Mesh | None = None  # over which item tables are split, of `engine.table_shards`
    streaming: Callable[[Any], ChunkedRound | None] | None = None  # population -> `round` in chunks
    mechanism: Mechanism | None = None  # None: nothing is known of what rounds reveal
    plain_round: Callable[..., tuple[State, RoundInfo]] | None = None  # `round` on one lane of one device
    repeats: bool = False  # whether all rounds give the model of the first, which is then the last

    def __repr__(self) -> str:  # its functions' own texts fill a screen
        return f"<Algorithm at {id(self):#x}>"


class Adversary(NamedTuple):
    """Malicious clients: what becomes of the clients' work, and what the algorithm must carry for them."""

    name: str
    wrap_work: Callable[[ClientWork], ClientWork]
    # (algorithm, its sampler) -> the algorithm with what colluding clients know between rounds; None: as it is
    wrap_algorithm: Callable[[Algorithm, Sampler], Algorithm] | None = None
