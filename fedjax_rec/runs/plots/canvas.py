"""The sheet that figures are drawn on: sizes, colours, names as they can be drawn. Needs matplotlib."""

import contextlib
import io
import math
import warnings
from collections.abc import Iterator, Sized
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#aa4499", "#7a7a7a")
MARKERS = "osD^vPX*"
INK = "#333334"  # of axes and words; the page replaces it by the colour of its text
FAINT = "#8a8a8b"  # of lines that are no run
STYLE: dict[Any, Any] = {
    "font.size": 8,
    "axes.titlesize": 8,
    "legend.fontsize": 7,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "lines.linewidth": 1.2,
    "lines.markersize": 3,
    "legend.frameon": False,
    "text.parse_math": False,  # names of files hold anything, and dollars are no formulas
    "pdf.fonttype": 42,
    "svg.fonttype": "none",
    "savefig.transparent": False,
}


class Picture(Figure):
    """A figure that a notebook shows as it is, and that writes names which its font lacks without a word."""

    def savefig(self, *given: Any, **options: Any) -> None:
        """Write the figure, as matplotlib does: the ending of the name says the format.

        Args:
            given: the file.
            options: of matplotlib.
        """
        with sheet(), warnings.catch_warnings():  # of characters that the font lacks
            warnings.simplefilter("ignore")
            super().savefig(*given, **options)

    def _repr_png_(self) -> bytes:
        found = io.BytesIO()
        self.savefig(found, format="png", dpi=150)
        return found.getvalue()


@contextlib.contextmanager
def sheet() -> Iterator[None]:
    """Draw in the style of this module, whatever the reader's own is."""
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(STYLE)
        yield


def picture(width: float, height: float) -> Picture:
    """An empty figure.

    Args:
        width: inches.
        height: inches.

    Returns:
        the figure.

    Raises:
        ValueError: if a size is not above 0.
    """
    if not (math.isfinite(width) and width > 0):
        raise ValueError(f"width must be a number of inches above 0, not {width}")
    return Picture(figsize=(width, height), layout="constrained")


def drawable(text: str, longest: int = 32) -> str:
    """A name as it can be drawn: lone bytes of other encodings are none, and what is long loses its middle.

    Args:
        text: the name.
        longest: letters.

    Returns:
        the text; one that begins with "_" has a blank before it, as matplotlib would leave it out.
    """
    text = text.encode("utf-8", "backslashreplace").decode()
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    if len(text) > longest:
        text = f"{text[: longest // 2]}…{text[-(longest // 2 - 1) :]}"
    return f" {text}" if text.startswith("_") else text


def color_of(index: int) -> dict[str, Any]:
    """Colour and marker of a run.

    Args:
        index: of the run.

    Returns:
        options of a line.
    """
    return {"color": COLORS[index % len(COLORS)], "marker": MARKERS[index % len(MARKERS)]}


def whole_numbers(axis: Any) -> None:
    """Rounds are whole numbers, and so are their ticks.

    Args:
        axis: of matplotlib.
    """
    axis.set_major_locator(MaxNLocator(nbins=6, integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))


def legend(axes: Any, records: Sized) -> None:
    """A legend, where there is something to tell apart.

    Args:
        axes: of matplotlib.
        records: that were drawn.
    """
    if len(records) > 1:
        axes.legend()
