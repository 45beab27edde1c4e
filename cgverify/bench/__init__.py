"""What a bridge costs beside Hugging Face, in time and memory, measured in pairs."""
