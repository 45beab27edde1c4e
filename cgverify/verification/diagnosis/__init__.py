"""Why a stage failed: where its tap is wrong, what computation it agrees with, and what else is wrong."""
