"""Ships the recipes of ``pipelines/`` as the package ``dimefm.pipelines``; setup.cfg has the rest."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["dimefm", "dimefm.*"]), "dimefm.pipelines"],
    package_dir={"dimefm.pipelines": "pipelines"},
)
