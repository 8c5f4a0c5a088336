"""The chapter visualization."""
