"""`weights`: every row of every weight and table that the candidate keeps, without a forward.

Forwards look up some rows of the embedding and of the sin/cos table, and a wrong row of a large weight moves one
element of their results. This case compares all of them with Hugging Face's, bit for bit, also under the names by which
people reach for them: `W_E`, `W_U`, `W_Q`, … (`cgverify/observe/kept_weights.py`). What a candidate does not have is
not compared. Only this case sees a row that no input contains.
"""

from __future__ import annotations

from cgverify.observe.cases.case import Case

CASE = Case(steps=lambda *_: (), whole_weights=True)
