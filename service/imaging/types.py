"""Plain types of image preprocessing."""

from dataclasses import dataclass


@dataclass(frozen=True)
class InputOptions:
    """Network inputs to make of one image.

    ``flip``: run the artifact that averages its maps over the flipped image. ``add_flipped_input``:
    add the flipped image as an input of its own, as the corner systems do. ``scales``: test scales,
    one input each. ``keep_resolution``: pad instead of resizing.
    """

    flip: bool = False
    add_flipped_input: bool = False
    scales: tuple[float, ...] = (1.0,)
    keep_resolution: bool = False

    @property
    def count(self) -> int:
        """Number of network inputs."""
        return len(self.scales) * (1 + self.add_flipped_input)
