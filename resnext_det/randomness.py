"""Random numbers that depend on what they are for, and not on what was drawn before.

A run has one seed. Every image that is read and every iteration of every process gets random
numbers from that seed and its own number, so that a run which stops and goes on draws the same ones
as a run which does not, with any number of data workers.
"""

import random

import numpy as np
import torch

# what the numbers are for
ITERATION = 0
IMAGE = 1


def seed_for(seed: int, *purpose: int) -> int:
    """Derive the seed of one use from a run's seed.

    Args:
        seed: the run's, 0 or more.
        purpose: what for, e.g. (IMAGE, 17), each 0 or more.

    Returns:
        A number of 63 bits; different purposes give independent ones.
    """
    words = np.random.SeedSequence([seed, *purpose]).generate_state(2)
    return (int(words[0]) << 31) | (int(words[1]) >> 1)


def seed_everything(seed: int, *purpose: int) -> None:
    """Seed torch (all devices), NumPy and `random` of this process for one use; see `seed_for`."""
    derived = seed_for(seed, *purpose)
    random.seed(derived)
    np.random.seed(derived % 2**32)
    torch.manual_seed(derived)
