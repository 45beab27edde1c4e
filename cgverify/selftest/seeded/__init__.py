"""Seeded faults, a subject a file; each is wrong in one way, which its docstring tells."""
