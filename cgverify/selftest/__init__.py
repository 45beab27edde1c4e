"""The self-test: seeded faults that the verifier must find, and correct variants that it must pass."""
