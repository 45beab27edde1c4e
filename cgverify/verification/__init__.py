"""From observed tensors to findings, and to a sentence that says why a cell failed."""
