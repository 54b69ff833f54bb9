"""One colour for each label, the same in every file, chosen for colour-blind people.

The colours are the seven of Okabe and Ito (2008) other than black, then those of Paul Tol's "muted" scheme, then both
again, darker.
"""

from __future__ import annotations

_OKABE_ITO = ("E69F00", "56B4E9", "009E73", "F0E442", "0072B2", "D55E00", "CC79A7")
_TOL = ("CC6677", "332288", "DDCC77", "117733", "88CCEE", "882255", "44AA99", "999933", "AA4499")
COLOURS = tuple((int(code[:2], 16), int(code[2:4], 16), int(code[4:], 16)) for code in (*_OKABE_ITO, *_TOL))
_DARKER = 0.6


def colour(index: int) -> tuple[int, int, int]:
    """Red, green, blue from 0 to 255 of the label or region with an index from 0.

    Example:
        >>> colour(0), colour(16)
        ((230, 159, 0), (138, 95, 0))
    """
    red, green, blue = COLOURS[index % len(COLOURS)]
    share = _DARKER ** (index // len(COLOURS) % 3)
    return round(red * share), round(green * share), round(blue * share)
