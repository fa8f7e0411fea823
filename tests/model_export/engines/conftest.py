"""The corner pooling kernels on the CPU."""

import pytest
from support.cuda_emulation import Emulation, compiler


@pytest.fixture(scope="session")
def emulation(tmp_path_factory: pytest.TempPathFactory) -> Emulation:
    """The kernels' source, compiled for this machine."""
    if compiler() is None:
        pytest.skip("no g++ to compile the kernels with")
    return Emulation(tmp_path_factory.mktemp("emulation"))
