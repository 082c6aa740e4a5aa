"""The recipes of ``pipelines/`` are installed with the package, in ``dimefm/pipelines/``."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["dimefm", "dimefm.*"]), "dimefm.pipelines"],
    package_dir={"dimefm.pipelines": "pipelines"},
)
