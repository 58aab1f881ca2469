"""One seed for every use: independent random streams derived from an experiment's seed.

Any trial can be run again by itself, because what it draws depends on names and numbers alone,
never on what was drawn before it.
"""

import hashlib

__all__ = ["derive_seed"]


def derive_seed(seed: int, use: str, *numbers: int) -> int:
    """Return the seed of one random stream.

    Args:
        seed: The experiment's seed.
        use: What the stream is for, for example "weights".
        numbers: Which one of them, for example the trial's number.

    Returns:
        An integer in [0, 2**32), the range that numpy, Optuna and torch all accept. The streams
        are independent for all practical purposes (BLAKE2b of the arguments).
    """
    name = "/".join([use, str(seed), *map(str, numbers)])
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=4).digest(), "big")
