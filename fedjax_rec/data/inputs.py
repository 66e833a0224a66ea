"""What may stand where a data set is asked for: a data set, a table of events, or a frame."""

from pathlib import Path

from fedjax_rec.data.frames import Frame, open_frame
from fedjax_rec.data.interactions import Dataset, Interactions
from fedjax_rec.data.readers import from_frame
from fedjax_rec.errors import ArgumentError, wrong_type

TAKEN = "a Dataset, Interactions, or a frame (of pandas, polars or pyarrow, or a dict of columns)"


def as_dataset(
    data: Dataset | Interactions | Frame, function: str, *, name: str = "dataset", taken: str = TAKEN
) -> Dataset:
    """Makes a data set of whatever holds events.

    Args:
        data: a data set, a table of events, or a frame whose columns have usual names (`from_frame` takes others).
        function: that was called, for messages,
        name: the name of its argument,
        taken: and what it takes, in words.

    Returns:
        the data set; that of a frame is called "frame".

    Raises:
        ArgumentError: if it is nothing of that kind.
        DataError: if the frame's events are malformed.

    Example:
        >>> as_dataset({"userId": [5, 5], "movieId": [1, 2]}, "leave_one_out").interactions.user_ids
        array([5])
    """
    if isinstance(data, Dataset):
        return data
    if isinstance(data, Interactions):
        return Dataset("interactions", data)
    if isinstance(data, str | Path):
        raise ArgumentError(
            "{" + name + "} is the text {_data!r}; {_function} takes data: load_dataset({_data!r}) reads it",
            _data=str(data),
            _function=function,
        )
    if open_frame(data) is None:
        raise wrong_type(function, name, data, taken)
    return Dataset("frame", from_frame(data))
