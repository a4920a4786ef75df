"""Whether a number as a sentence spells it is the number that was recomputed."""

import math
import re

NUMBER = r"[<>]?[+-]?\d+(?:\.\d+)?"
P = r"p (?:= (?:1|\.\d+)|< \.\d+)"
SLACK = 1e-7  # of float arithmetic between two ways to compute one number


def _half_unit(digits: str) -> float:
    return 0.5 * 10.0 ** -(len(digits.partition(".")[2]))


def is_rounded(text: str, value: float, exact: tuple[float, ...] = (), *, two_digits: bool = False) -> bool:
    """Whether `text` rounds `value`; numbers in `exact` are spelled only where they are exact.

    With `two_digits` a number of one significant digit must still be right to two.
    """
    digits = text.lstrip("<>+-")
    spelled = float(text.lstrip("<>"))
    slack = SLACK * max(1.0, abs(value))
    if text[0] == "<":
        return 0 < abs(value) < abs(spelled) and (value > 0) == (spelled > 0)
    if text[0] == ">":
        return spelled < value and (not exact or value < max(exact))
    if text.startswith("-") and spelled == 0:
        return False
    if spelled in exact:
        return abs(value - spelled) <= slack
    tolerance = _half_unit(digits)
    if two_digits and len(digits.replace(".", "").strip("0")) < 2 and value:
        tolerance = min(tolerance, 0.5 * 10.0 ** (math.floor(math.log10(abs(value))) - 1))
    return abs(value - spelled) <= tolerance + slack


def is_percent(text: str, share: float) -> bool:
    """Whether `text` is a share in percent; 0 and 100 only where exact."""
    return text[0] not in "+-" and is_rounded(text, 100 * share, (0.0, 100.0))


def is_points(text: str, difference: float) -> bool:
    """Whether `text` is a signed difference of shares in points; 0 and 100 only where exact."""
    signed = text.lstrip("<>")[0] in "+-"
    return signed and is_rounded(text, 100 * difference, (0.0, 100.0, -100.0))


def is_p(text: str, p: float, alpha: float = 0.05) -> bool:
    """Whether `text` is a p value: rounded to two digits at least, and on its own side of alpha."""
    spelled = float(re.sub(r"p [=<] ", "", text))
    if text.startswith("p <"):
        return text == "p < .0001" and p < spelled
    rounded = is_rounded(text.rpartition("= ")[2], p, two_digits=True)
    return spelled > 0 and rounded and (spelled < alpha) == (p < alpha)
