"""Triton with PyTriton and dynamic batching: encoded images in, one JSON string per image out."""

import json
import os
import sysconfig
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from detector import Detector, read_settings
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

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


if __name__ == "__main__":
    config = TritonConfig(
        http_address="127.0.0.1", http_port=settings.port, allow_grpc=False, allow_metrics=False
    )
    with Triton(config=config) as triton:
        triton.bind(
            model_name="detect",
            infer_func=[make_infer() for _ in range(settings.workers)],
            inputs=[Tensor(name="image", dtype=bytes, shape=(1,))],
            outputs=[Tensor(name="detections", dtype=bytes, shape=(1,))],
            config=ModelConfig(
                max_batch_size=settings.batch_size,
                batcher=DynamicBatcher(max_queue_delay_microseconds=int(settings.wait_ms * 1000)),
            ),
            strict=True,
        )
        triton.serve()
