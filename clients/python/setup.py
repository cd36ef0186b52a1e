"""Makes the message classes from proto/ of the repository that this folder lies in."""

import pathlib
import re

from setuptools import setup
from setuptools.command.build_py import build_py

ROOT = pathlib.Path(__file__).resolve().parents[2]
# dsa.v1: others' protocols have packages of their own, whose types would collide with these.
FILES = [f"proto/{name}.proto" for name in ("common", "chat", "completion", "token", "model", "admin")]


class BuildWithProtos(build_py):
    def run(self):
        super().run()
        from grpc_tools import protoc

        missing = [name for name in FILES if not (ROOT / name).is_file()]
        if missing:
            raise SystemExit(f"{missing[0]} is not in {ROOT}: install from a copy of the repository")
        package = pathlib.Path(self.build_lib) / "dsa_client"
        options = [f"-I{ROOT}", f"--python_out={package}", f"--pyi_out={package}"]
        if protoc.main(["protoc", *options, *FILES]) != 0:
            raise SystemExit("protoc failed")
        (package / "proto" / "__init__.py").write_text('"""Messages of dsa.v1."""\n')
        for path in (package / "proto").glob("*_pb2.py*"):
            text = path.read_text()
            path.write_text(re.sub(r"^from proto import ", "from dsa_client.proto import ", text, flags=re.M))


setup(cmdclass={"build_py": BuildWithProtos})
