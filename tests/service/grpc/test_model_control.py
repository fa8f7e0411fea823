"""Calls that load and unload models."""

from pathlib import Path

import pytest
from support.packages import change_file, write_version
from support.serving import run_server, wait_until
from tritonclient.grpc import InferenceServerClient
from tritonclient.utils import InferenceServerException

from service.grpc_port import reserved_grpc_port
from service.model_registry import load_models
from service.model_repository import BAD_FILES
from service.settings import Settings


@pytest.mark.parametrize("control", [("explicit",), ()])
def test_tritonclient_loads_and_unloads(tmp_path: Path, control: tuple[str, ...]) -> None:
    write_version(tmp_path / "one", "1")
    settings = Settings(
        models=tmp_path,
        backend="onnxruntime-cpu",
        max_batch_size=1,
        model_control=control,
        grpc_port=0,
    )
    with (
        reserved_grpc_port(settings) as settings,
        run_server(lambda *given: load_models(*given, print), settings),
        InferenceServerClient(f"127.0.0.1:{settings.grpc_port}") as client,
    ):
        write_version(tmp_path / "two", "2", score=0.6)
        if not control:
            for change in (client.load_model, client.unload_model):
                with pytest.raises(InferenceServerException, match="not supported") as caught:
                    change("cells")
                assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
            return
        client.load_model("cells")
        assert list(client.get_model_metadata("cells").versions) == ["2"]
        change_file(write_version(tmp_path / "three", "3"))
        with pytest.raises(InferenceServerException, match=BAD_FILES) as caught:
            client.load_model("cells")
        assert caught.value.status() == "StatusCode.UNAVAILABLE"
        with pytest.raises(InferenceServerException, match="'config'") as caught:
            client.load_model("cells", config="{}")
        assert caught.value.status() == "StatusCode.UNIMPLEMENTED"
        assert client.is_model_ready("cells", "2")
        client.unload_model("cells")
        wait_until(
            lambda: (
                [
                    (model.state, model.reason)
                    for model in client.get_model_repository_index().models
                    if model.name == "cells"
                ]
                == [("UNAVAILABLE", "unloaded")]
            )
        )
        with pytest.raises(InferenceServerException) as caught:
            client.unload_model("cells")
        assert caught.value.status() == "StatusCode.NOT_FOUND"
