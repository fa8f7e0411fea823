"""Plain types of the imaging stage."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DecodingCost:
    """Upper bounds of the resources for decoding one image, computed from its header.

    ``memory_bytes``: peak memory beside the encoded file. ``cpu_s``: CPU time in seconds.
    """

    memory_bytes: int
    cpu_s: float


@dataclass(frozen=True)
class InputOptions:
    """Network inputs that a request needs for its image.

    ``flip`` selects the artifact that averages its heatmaps over the image and its flipped copy;
    ``add_flipped_input`` adds the flipped copy as a network input of its own, as corner
    and extreme point models need it. ``scales``: test scales; ``keep_resolution``: pad rather than
    resize.
    """

    flip: bool = False
    add_flipped_input: bool = False
    scales: tuple[float, ...] = (1.0,)
    keep_resolution: bool = False

    @property
    def count(self) -> int:
        """Number of network inputs."""
        return len(self.scales) * (1 + self.add_flipped_input)
