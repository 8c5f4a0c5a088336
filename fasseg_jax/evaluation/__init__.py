"""The chapter evaluation."""
