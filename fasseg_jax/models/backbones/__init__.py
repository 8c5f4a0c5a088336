"""The chapter backbones."""
