"""Notes, in a package that is built in a clone, where the clone is: its program is then found without a word of the user's."""
import pathlib

from setuptools import setup
from setuptools.command.build_py import build_py


class Build(build_py):
    def run(self):
        super().run()
        clone = pathlib.Path(__file__).resolve().parents[1]
        if (clone / "Cargo.toml").is_file() and not self.editable_mode:
            (pathlib.Path(self.build_lib) / "maskdiff" / "clone.txt").write_text(f"{clone}\n")


setup(cmdclass={"build_py": Build})
