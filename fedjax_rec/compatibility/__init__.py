"""What goes with what: one table of the features of algorithms and runs that cannot be combined.

`features` names them, `table` holds the rows with the reasons and the ways out, `check` refuses by them. What is
given to `federate`, to an algorithm's factory or as settings of a run says which features there are; a rule about
two of them stands in the table and nowhere else. Rules about one, such as a number out of range, are where the
number is read. The wing imports nothing of the package but its errors.
"""

from fedjax_rec.compatibility.check import check_together, goes_with
from fedjax_rec.compatibility.features import Feature, Features, RunFeature

__all__ = ["Feature", "Features", "RunFeature", "check_together", "goes_with"]
