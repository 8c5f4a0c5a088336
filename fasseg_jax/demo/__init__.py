"""The chapter demo."""
