"""`default`: random inputs as they are.

It shows what a plain forward shows: wrong weights, a wrong order of operations, a wrong dtype. It is also how most
people run a model, so a fault here is a fault for them.
"""

from cgverify.observe.cases.case import Case
from cgverify.observe.inputs import leave_unchanged

CASE = Case(transform=leave_unchanged)
