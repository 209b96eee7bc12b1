"""Build entry: metadata stands in pyproject.toml."""

from setuptools import setup

setup()
