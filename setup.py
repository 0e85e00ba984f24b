"""Lists the packages of all four floors; everything else about the package is in pyproject.toml."""

from setuptools import find_namespace_packages, setup

packages = ["tapeout"]
for floor in ("compiler", "passes", "targets"):
    packages += [f"tapeout.{floor}"] + [f"tapeout.{floor}.{name}" for name in find_namespace_packages(floor)]
setup(packages=[name for name in packages if "__pycache__" not in name])
