"""`stress`: inputs bent by the component's own stress, see `cgverify/observe/inputs.py`.

Only this case sees an ignored `position_ids`, a mask that is added after scaling, a wrong epsilon of a layer norm,
another variant of gelu, rows of an embedding that are off by one at its ends.
"""

from cgverify.observe.cases.case import Case

CASE = Case(bend=lambda stress: stress)
