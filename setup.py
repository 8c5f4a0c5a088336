"""Packages of the wheel: those of `fasseg_jax`, and the recipes of `configs/`. Everything else is in pyproject.toml."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["fasseg_jax*"]), "fasseg_jax.recipes"],
    package_dir={"fasseg_jax.recipes": "configs"},
)
