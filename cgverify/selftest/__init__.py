"""The verifier's own exam: seeded faults that it must find, and correct variants that it must not flag."""
