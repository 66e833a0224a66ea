"""Bytes that processes send one another beside their devices, through the key-value store that jax joins them by.

What runs on the devices of all processes must run in one order in all of them, so a thread that works beside the
rounds can have no part in it. It sends messages instead: these lie with process 0, to whose coordination service
all are connected, until everybody has read them.
"""

import itertools
from typing import Any

import jax
from jax._src import distributed  # jax has no public name for the store of its coordination service

from fedjax_rec.hosts.processes import naming_lost_peers, num_processes

PIECE = 2**20  # bytes of a message that are sent at once; gRPC takes up to 4 MiB
PATIENCE = 600  # seconds for which one that lives, but says nothing, is waited for
_COUNT = 4  # bytes before the first piece, which say how many there are
_names = itertools.count()


class Mailbox:
    """What all processes say, turn by turn. All make their mailboxes in one order; a thread needs one of its own.

    Args:
        store: set, get and delete of bytes by key, as jax's coordination service has them; that of this program if
            None.
        number: of this process; jax's if None.
        count: P; jax's if None.

    Example:
        >>> Mailbox().exchange(b"three rounds")
        [b'three rounds']
    """

    def __init__(self, store: Any = None, number: int | None = None, count: int | None = None) -> None:
        self.count = num_processes() if count is None else count
        self.number = (jax.process_index() if self.count > 1 else 0) if number is None else number
        self._store: Any = distributed.global_state.client if store is None else store
        self._name = str(next(_names) if store is None else 0)
        self._children = 0
        self._turn = 0
        self._sent: list[str] = []  # keys of this one's last message

    def exchange(self, message: bytes) -> list[bytes]:
        """Tell all processes something, and hear theirs; all must call it.

        Args:
            message: of any length.

        Returns:
            the messages, by process.

        Raises:
            ConnectionError: if another process is gone, or says nothing for 10 minutes.
        """
        if self.count == 1:
            return [message]
        turn = f"fedjax_rec/{self._name}/{self._turn}"
        self._turn += 1
        with naming_lost_peers():
            sent = self._send(f"{turn}/{self.number}", message)
            heard = [
                message if number == self.number else self._receive(f"{turn}/{number}")
                for number in range(self.count)
            ]
            # Whoever has sent in this turn has read all of the turn before.
            for key in self._sent:
                self._store.key_value_delete(key)
        self._sent = sent
        return heard

    def apart(self) -> "Mailbox":
        """A mailbox for another thread; all must make it."""
        other = Mailbox(self._store, self.number, self.count)
        self._children += 1
        other._name = f"{self._name}.{self._children}"
        return other

    def _send(self, name: str, message: bytes) -> list[str]:
        """Lay down a message in pieces: their keys."""
        pieces = [message[start : start + PIECE] for start in range(0, max(len(message), 1), PIECE)]
        pieces[0] = len(pieces).to_bytes(_COUNT, "little") + pieces[0]
        keys = [f"{name}/{number}" for number in range(len(pieces))]
        for key, piece in zip(keys, pieces, strict=True):
            self._store.key_value_set_bytes(key, piece)
        return keys

    def _receive(self, name: str) -> bytes:
        """Wait for a message, and put its pieces together."""
        first = self._get(f"{name}/0")
        count = int.from_bytes(first[:_COUNT], "little")
        return b"".join([first[_COUNT:], *(self._get(f"{name}/{number}") for number in range(1, count))])

    def _get(self, key: str) -> bytes:
        return self._store.blocking_key_value_get_bytes(key, PATIENCE * 1000)
