"""The chapter models."""
