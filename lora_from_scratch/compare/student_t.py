"""Student's t distribution, by way of the regularised incomplete beta function I_x(a, b).

P(T > t) = I_x(nu / 2, 1 / 2) / 2 for t >= 0, with x = nu / (nu + t^2) (Abramowitz and Stegun 1964, 26.7.1).
The degrees of freedom nu are any number above 0.
"""

from __future__ import annotations

import math
from statistics import NormalDist

TINY = 1e-300  # in place of a denominator of 0


def survival(t: float, nu: float) -> float:
    """P(T > t), to all its digits also where it is small."""
    if t < 0:
        return 1 - survival(-t, nu)
    a, square = nu / 2, t * t
    x, y = nu / (nu + square), square / (nu + square)  # y = 1 - x, without cancellation
    if y == 0:
        return 0.5
    # x^a y^(1/2) / B(a, 1/2): what both continued fractions are multiplied by
    front = math.exp(_log_gamma_ratio(a) - a * math.log1p(square / nu)) * math.sqrt(y / math.pi)
    if x < (a + 1) / (a + 2.5):
        return front / a * _fraction(a, 0.5, x) / 2
    return 0.5 - front * _fraction(0.5, a, y)


def quantile(p: float, nu: float) -> float:
    """The t with P(T <= t) = p, for 0 < p < 1."""
    tail, a = min(p, 1 - p), nu / 2
    peak = math.exp(_log_gamma_ratio(a)) / math.sqrt(math.pi * nu)  # the density at 0
    z = -NormalDist().inv_cdf(tail)
    t = z + (z**3 + z) / (4 * nu)
    for _ in range(200):
        density = peak * math.exp(-(a + 0.5) * math.log1p(t * t / nu))
        # Newton's step: right of 0 the cdf is concave, so that from the left no step passes the root
        before, t = t, max(0.0, t + (survival(t, nu) - tail) / density)
        if abs(t - before) <= 1e-14 * t:
            break
    return math.copysign(t, p - 0.5)


def _log_gamma_ratio(a: float) -> float:
    """log(gamma(a + 1/2) / gamma(a)); by its series for large a, where both are huge and nearly equal."""
    if a < 20:
        return math.lgamma(a + 0.5) - math.lgamma(a)
    return math.log(a) / 2 - 1 / (8 * a) + 1 / (192 * a**3) - 1 / (640 * a**5)


def _fraction(a: float, b: float, x: float) -> float:
    """I_x(a, b) a B(a, b) / (x^a (1 - x)^b) = 1 / (1 + d_1 / (1 + d_2 / ...)) (26.5.8), by Lentz's method."""
    value, c, d = 1.0, 1.0, 0.0
    for i in range(1, 100_000):
        m = i // 2
        step = -(a + m) * (a + b + m) if i % 2 else m * (b - m)
        step *= x / ((a + i - 1) * (a + i))
        c = 1 + step / c or TINY
        d = 1 / (1 + step * d or TINY)
        value *= c * d
        if abs(c * d - 1) < 1e-15:
            break
    return 1 / value
