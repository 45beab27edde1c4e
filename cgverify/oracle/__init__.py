"""The float64 value of every stage, with the largest error that correct arithmetic can make. One stage a file.

Every function takes tensors as one side really had them, and returns `Expected`.
"""
