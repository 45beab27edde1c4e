"""The float64 value of every stage, with the largest error that correct arithmetic can make. One file per stage.

Every function takes the tensors that one side really had, and returns `Expected`.
"""
