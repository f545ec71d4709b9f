"""Matplotlib for files alone: no screen, no pyplot, and whatever backend a notebook has left in the environment.

Matplotlib looks at MPLBACKEND when it is first imported, and refuses to be if that names a backend which is not
installed here. A `Figure` made without pyplot needs none.
"""

import os

_given = os.environ.pop("MPLBACKEND", None)
try:
    from matplotlib import colormaps
    from matplotlib.axes import Axes
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch
finally:
    # Put back, as the user's own code and other processes may want it.
    if _given is not None:
        os.environ["MPLBACKEND"] = _given

__all__ = ["Axes", "Figure", "ListedColormap", "Patch", "colormaps"]
