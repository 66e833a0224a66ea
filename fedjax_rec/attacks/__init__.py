"""Adversaries: malicious clients, what they send, and what a curious server learns.

`adversary` puts malicious clients into the compiled round, and has those that flip their labels; `promotion` (with
`pieck` and `fedrecattack`) crafts what colluding ones send to push items; `byzantine` changes the updates of a
stack, in front of a robust aggregator; `inference` guesses a client's items from what it sends. May import
`federation` and all below it.
"""

from fedjax_rec.attacks.adversary import colluding, label_flip
from fedjax_rec.attacks.byzantine import alie, attacked, gaussian, ipm, not_a_number, scaling, sign_flip
from fedjax_rec.attacks.fedrecattack import fedrecattack
from fedjax_rec.attacks.inference import guess_by_rows, guess_by_signs, imia, score_guess
from fedjax_rec.attacks.pieck import pieck_ipe, pieck_uea
from fedjax_rec.attacks.promotion import a_hum, a_ra, explicit_boosting

__all__ = [
    "a_hum",
    "a_ra",
    "alie",
    "attacked",
    "colluding",
    "explicit_boosting",
    "fedrecattack",
    "gaussian",
    "guess_by_rows",
    "guess_by_signs",
    "imia",
    "ipm",
    "label_flip",
    "not_a_number",
    "pieck_ipe",
    "pieck_uea",
    "scaling",
    "score_guess",
    "sign_flip",
]
