"""DIME-FM's three losses with numpy and loops over rows: slow, obvious, written from the paper's
formulas.
"""

import numpy as np


def unit(rows):
    """Return rows at unit length, without an epsilon."""
    return rows / np.sqrt((rows * rows).sum(axis=1, keepdims=True))


def softmax(values):
    """Return the softmax of one row."""
    powers = np.exp(values - values.max())
    return powers / powers.sum()


def kl(target, found, temperature):
    """Return the mean over rows of KL(softmax(target / t) || softmax(found / t)), both [Q, K]."""
    total = 0.0
    for target_row, found_row in zip(target, found, strict=True):
        p, q = softmax(target_row / temperature), softmax(found_row / temperature)
        for share, other in zip(p, q, strict=True):
            total += share * (np.log(share) - np.log(other)) if share > 0 else 0.0
    return total / len(target)


def scores(queries, keys, scale):
    """Return scale times the cosine of every query [Q, D] with every key [K, D]."""
    return np.array([[scale * (query @ key) for key in unit(keys)] for query in unit(queries)])


def vl(student, image, text, scale=100.0, temperature=1.0):
    """Student images against teacher sentences in both directions, each averaged over its own
    rows.
    """
    forward = kl(scores(image, text, scale), scores(student, text, scale), temperature)
    backward = kl(scores(text, image, scale), scores(text, student, scale), temperature)
    return forward + backward


def pvl(student, image, text, scale=100.0, temperature=3.0):
    """Teacher images in the place of sentences; the two directions are alike."""
    return 2 * kl(scores(image, image, scale), scores(student, image, scale), temperature)


def udist(student, image, text, scale=100.0, temperature=7.0):
    """Similarities among student images against those among teacher images; the two directions are
    alike.
    """
    return 2 * kl(scores(image, image, scale), scores(student, student, scale), temperature)
