"""`stress`: inputs changed by the component's own stress (`cgverify/observe/inputs.py`).

Only this case sees ignored `position_ids`, a mask that is added after scaling, a wrong epsilon of a layer norm, another
variant of gelu, rows of an embedding that are off by one at its ends.
"""

from cgverify.observe.cases.case import Case

CASE = Case()
