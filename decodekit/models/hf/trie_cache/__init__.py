"""The trie cache: one entry per prompt, shared by its rows."""
