"""What pyproject.toml cannot say: sample_condition.py goes below the package, too."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildPy(build_py):
    """build_py, and the program."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            self.copy_file("sample_condition.py", str(Path(self.build_lib) / "dpps"))


setup(cmdclass={"build_py": BuildPy})
