"""Which network inputs a request needs, and where the image lies in each.

Everything here is arithmetic on sizes; :mod:`service.imaging.warp` moves the pixels.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace

from model_package import FreeSize, InputSpec, ModelManifest
from service.errors import ImageSizeError
from service.imaging.geometry import CORNER_STRIDE, AffineTransform, ImageTransform
from service.imaging.image_decoding import MAX_SIDE_PX
from service.imaging.types import InputOptions


class InputPlanner:
    """Places images in the inputs of one model; refuses what would be too much or too little."""

    def __init__(self, manifest: ModelManifest, max_image_pixels: int) -> None:
        self._spec = manifest.input
        self._max_image_pixels = max_image_pixels
        # A map must have as many cells as peaks are taken from it.
        stride = getattr(manifest.decoder, "output_stride", CORNER_STRIDE)
        self._min_input_pixels = manifest.decoder.top_k * stride**2

    def place(
        self, width_px: int, height_px: int, options: InputOptions
    ) -> tuple[ImageTransform, ...]:
        """Place an image in every input that the options ask for, in the order of the scales.

        A flipped image follows its original. Raises :class:`ImageSizeError`.
        """
        rules = _KEEPING if options.keep_resolution else _SCALING
        place = rules[self._spec.resize]
        placements = []
        for scale in options.scales:
            placement = place(self._spec, width_px, height_px, scale)
            self._check(placement, options)
            placements.append(placement)
            if options.add_flipped_input:
                placements.append(replace(placement, flipped=True))
        return tuple(placements)

    def _check(self, placed: ImageTransform, options: InputOptions) -> None:
        resized = f"{placed.resized_width_px} x {placed.resized_height_px} pixels"
        received = f"At the scale {placed.test_scale:g} the image has {resized}"
        if (
            placed.resized_width_px * placed.resized_height_px > self._max_image_pixels
            or max(placed.resized_width_px, placed.resized_height_px) > MAX_SIDE_PX
        ):
            raise ImageSizeError(
                f"{received}; at most {self._max_image_pixels} in all and {MAX_SIDE_PX} per side "
                "are accepted. Send a smaller image, or leave out the larger scales."
            )
        free_size = self._spec.free_size
        if not options.keep_resolution or free_size is None:
            return
        needed = f"{placed.input_width_px} x {placed.input_height_px}"
        if max(placed.input_width_px, placed.input_height_px) > free_size.max_side_px:
            raise ImageSizeError(
                f"{received}, which need an input of {needed}; the model takes at most "
                f"{free_size.max_side_px} per side with its resolution kept. Send a smaller "
                "image or smaller scales, or leave out keep_resolution where the model can."
            )
        if placed.input_width_px * placed.input_height_px < self._min_input_pixels:
            raise ImageSizeError(
                f"{received}, which make an input of {needed}: too little for the model with its "
                "resolution kept. Send a larger image or larger scales, or leave out "
                "keep_resolution where the model can."
            )


def _letterbox(spec: InputSpec, width_px: int, height_px: int, test_scale: float) -> ImageTransform:
    """Fit the longer side of the *unscaled* image to the input's width, centers aligned.

    The upstream fixed-resolution test: the height of the input never enters, so an image that is
    relatively taller than the input is cropped at top and bottom; a test scale changes how large
    the image appears in the same input.
    """
    return _centered(
        spec, width_px, height_px, test_scale, spec.width_px / max(width_px, height_px)
    )


def _fit_width(spec: InputSpec, width_px: int, height_px: int, test_scale: float) -> ImageTransform:
    """Fit the width of the image to the input's; its height is cropped or padded (3D)."""
    return _centered(spec, width_px, height_px, test_scale, spec.width_px / width_px)


def _crop_or_pad(
    spec: InputSpec, width_px: int, height_px: int, test_scale: float
) -> ImageTransform:
    """Do not scale; crop or pad both sides around the center (3D, resolution kept)."""
    return _centered(spec, width_px, height_px, test_scale, 1.0)


def _centered(
    spec: InputSpec, width_px: int, height_px: int, test_scale: float, scale: float
) -> ImageTransform:
    resized_width, resized_height = _resized(width_px, height_px, test_scale)
    to_input = AffineTransform.centered(
        scale,
        (resized_width / 2, resized_height / 2),
        (spec.width_px / 2, spec.height_px / 2),
    )
    return ImageTransform(
        resized_width, resized_height, spec.width_px, spec.height_px, to_input, test_scale
    )


def _keep_resolution(
    spec: InputSpec, width_px: int, height_px: int, test_scale: float
) -> ImageTransform:
    """Pad to the next size that the network takes; a shift by whole pixels.

    Halves are rounded down on both sides, by *Objects as Points* as by the corner systems.
    """
    assert spec.free_size is not None, "the options allow it only then"
    resized_width, resized_height = _resized(width_px, height_px, test_scale)
    input_width = _padded(resized_width, spec.free_size)
    input_height = _padded(resized_height, spec.free_size)
    to_input = AffineTransform(
        1.0, input_width // 2 - resized_width // 2, input_height // 2 - resized_height // 2
    )
    return ImageTransform(
        resized_width, resized_height, input_width, input_height, to_input, test_scale
    )


def _padded(side_px: int, free_size: FreeSize) -> int:
    return (side_px | (free_size.multiple_px - 1)) + free_size.extra_px


def _resized(width_px: int, height_px: int, test_scale: float) -> tuple[int, int]:
    return int(width_px * test_scale), int(height_px * test_scale)


_Rule = Callable[[InputSpec, int, int, float], ImageTransform]
_SCALING: Mapping[str, _Rule] = {"letterbox": _letterbox, "fit_width": _fit_width}
_KEEPING: Mapping[str, _Rule] = {
    "letterbox": _keep_resolution,
    "fit_width": _crop_or_pad,
    "keep_resolution": _keep_resolution,
}
