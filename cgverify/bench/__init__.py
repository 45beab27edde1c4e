"""Time and memory of bridges compared with Hugging Face, measured in pairs."""
