"""The demo model: its corpus, its network and its file."""
