"""Why a cell failed, in one sentence: the first stage that broke, where in its tensor, by how much, and its cause."""
