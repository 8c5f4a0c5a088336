"""The chapter deformable."""
