"""Triton with PyTriton and dynamic batching: encoded images in, one JSON string per image out.

With the variant ``tensors``: network inputs in, outputs of the network out.
"""

import json
import os
import sysconfig
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from detector import OUTPUTS, Detector, read_settings
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig, TritonSecurityConfig

settings = read_settings()
# Triton's Python backend loads libpython3.11 from the linker's search path. It must be the library
# of this interpreter, or it does not match the standard library in use.
os.environ["LD_LIBRARY_PATH"] = sysconfig.get_config_var("LIBDIR")


def make_infer() -> Callable[..., dict[str, np.ndarray]]:
    detector = Detector(settings)
    pool = ThreadPoolExecutor(2)

    @batch
    def infer(image: np.ndarray) -> dict[str, np.ndarray]:
        bodies = [bytes(row[0]) for row in image]
        each = pool.map if settings.variant == "decoding_pool" else map
        documents = detector.run(list(each(detector.prepare, bodies)))
        rows = [[json.dumps(document).encode()] for document in documents]
        return {"detections": np.array(rows, object)}

    return infer


def make_infer_tensors() -> Callable[..., dict[str, np.ndarray]]:
    detector = Detector(settings)

    @batch
    def infer(images: np.ndarray) -> dict[str, np.ndarray]:
        return dict(zip(OUTPUTS, detector.engine.run(images), strict=True))

    return infer


def tensors(top_k: int) -> Sequence[Tensor]:
    return [
        Tensor(name="scores", dtype=np.float32, shape=(top_k,)),
        Tensor(name="class_ids", dtype=np.int32, shape=(top_k,)),
        Tensor(name="centers", dtype=np.float32, shape=(top_k, 2)),
        Tensor(name="sizes", dtype=np.float32, shape=(top_k, 2)),
    ]


if __name__ == "__main__":
    config = TritonConfig(
        http_address="127.0.0.1", http_port=settings.port, allow_grpc=False, allow_metrics=False
    )
    manifest = json.loads((settings.model / "model.json").read_text())
    sides = manifest["input"]["height_px"], manifest["input"]["width_px"]
    # perf_analyzer reads the statistics, which PyTriton restricts by default.
    security = TritonSecurityConfig(restricted_endpoints=[])
    with Triton(config=config, security_config=security) as triton:
        if settings.variant == "tensors":
            name, make = "network", make_infer_tensors
            inputs = [Tensor(name="images", dtype=np.uint8, shape=(*sides, 3))]
            outputs = tensors(manifest["decoder"]["top_k"])
        else:
            name, make = "detect", make_infer
            inputs = [Tensor(name="image", dtype=bytes, shape=(1,))]
            outputs = [Tensor(name="detections", dtype=bytes, shape=(1,))]
        triton.bind(
            model_name=name,
            infer_func=[make() for _ in range(settings.workers)],
            inputs=inputs,
            outputs=outputs,
            config=ModelConfig(
                max_batch_size=settings.batch_size,
                batcher=DynamicBatcher(max_queue_delay_microseconds=int(settings.wait_ms * 1000)),
            ),
            strict=True,
        )
        triton.serve()
