"""Random numbers by counting: the n-th word of a chain is a function of its key and of n.

SplitMix64's finalizer (Steele, Lea and Flood 2014) twice, with a half of the key before each, so that the words of two
chains are not parts of one sequence. Normals by inversion, one word for each: Wichura (1988), algorithm AS 241, right
to 1 part in 1e16.
"""

from __future__ import annotations

import math

from genmlx.native.restricted import WORD, Word

_GOLDEN = 0x9E3779B97F4A7C15
CENTRAL = 0.425


def word(first: Word, second: Word, n: Word) -> Word:
    return mixed(mixed((first + n * _GOLDEN) & WORD) ^ second)


def mixed(z: Word) -> Word:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & WORD
    return z ^ (z >> 31)


def unit(z: Word) -> float:
    """A number in (0, 1), of the upper 52 bits."""
    return (float(z >> 12) + 0.5) / 4503599627370496.0


def quantile(p: float) -> float:
    """The standard normal's."""
    q = p - 0.5
    if abs(q) <= CENTRAL:
        r = 0.180625 - q * q
        return q * central_above(r) / central_below(r)
    r = math.sqrt(-math.log(p if q < 0.0 else 1.0 - p))
    if r <= 5.0:
        r -= 1.6
        size = tail_above(r) / tail_below(r)
    else:
        r -= 5.0
        above = 2.01033439929228813265e-7 * r + 2.71155556874348757815e-5
        above = ((above * r + 0.0012426609473880784386) * r + 0.026532189526576123093) * r + 0.29656057182850489123
        above = ((above * r + 1.7848265399172913358) * r + 5.4637849111641143699) * r + 6.6579046435011037772
        below = 2.04426310338993978564e-15 * r + 1.4215117583164458887e-7
        below = ((below * r + 1.8463183175100546818e-5) * r + 7.868691311456132591e-4) * r + 0.0148753612908506148525
        below = ((below * r + 0.13692988092273580531) * r + 0.59983220655588793769) * r + 1.0
        size = above / below
    return -size if q < 0.0 else size


def central_above(r: float) -> float:
    above = 2509.0809287301226727 * r + 33430.575583588128105
    above = ((above * r + 67265.770927008700853) * r + 45921.953931549871457) * r + 13731.693765509461125
    return ((above * r + 1971.5909503065514427) * r + 133.14166789178437745) * r + 3.387132872796366608


def central_below(r: float) -> float:
    below = 5226.495278852545925 * r + 28729.085735721942674
    below = ((below * r + 39307.89580009271061) * r + 21213.794301586595867) * r + 5394.1960214247511077
    return ((below * r + 687.1870074920579083) * r + 42.313330701600911252) * r + 1.0


def tail_above(r: float) -> float:
    above = 7.7454501427834140764e-4 * r + 0.0227238449892691845833
    above = ((above * r + 0.24178072517745061177) * r + 1.27045825245236838258) * r + 3.64784832476320460504
    return ((above * r + 5.7694972214606914055) * r + 4.6303378461565452959) * r + 1.42343711074968357734


def tail_below(r: float) -> float:
    below = 1.05075007164441684324e-9 * r + 5.475938084995344946e-4
    below = ((below * r + 0.0151986665636164571966) * r + 0.14810397642748007459) * r + 0.68976733498510000455
    return ((below * r + 1.6763848301838038494) * r + 2.05319162663775882187) * r + 1.0
