"""The protobuf messages of this package, in a descriptor pool of their own.

Modules that ``protoc`` generates register their messages in the pool of the process, where those of
Triton's client have the same names, and each needs a protobuf runtime of certain versions. The
descriptors that ``protoc`` writes, ``messages.binpb``, have neither limit.
"""

from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

DESCRIPTORS = Path(__file__).with_name("messages.binpb")


def _read_pool() -> DescriptorPool:
    pool = DescriptorPool()
    for file in FileDescriptorSet.FromString(DESCRIPTORS.read_bytes()).file:
        pool.AddSerializedFile(file.SerializeToString())
    return pool


_POOL = _read_pool()


def message_classes(file: str) -> dict[str, type[Message]]:
    """Return the classes of the messages of a ``.proto`` file by name."""
    messages = _POOL.FindFileByName(file).message_types_by_name
    return {name: GetMessageClass(descriptor) for name, descriptor in messages.items()}
