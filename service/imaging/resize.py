"""Sizes and transforms of the network inputs of an image.

Computes with sizes only; :mod:`service.imaging.warp` transforms the pixels.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import assert_never

from model_package import FreeSize, InputSpec, ModelManifest, ResizeMode
from service.errors import ImageSizeError
from service.imaging.geometry import AffineTransform, ImageTransform
from service.imaging.image_decoding import MAX_SIDE_PX
from service.imaging.types import InputOptions


class InputPlanner:
    """Computes the transforms to the network inputs of one model, and enforces size limits."""

    def __init__(self, manifest: ModelManifest, max_image_pixels: int) -> None:
        self._spec = manifest.input
        self._max_image_pixels = max_image_pixels
        # The graph takes the top k cells of an output map, so the map needs that many.
        self._min_input_pixels = manifest.decoder.top_k * manifest.decoder.output_stride**2

    def plan_inputs(
        self, width_px: int, height_px: int, options: InputOptions
    ) -> tuple[ImageTransform, ...]:
        """Return one transform per network input of an image, in the order of the test scales.

        ``width_px`` and ``height_px`` are those of the upright original image. The flipped copy
        of an input follows it. Raises :class:`ImageSizeError`.
        """
        transform_for = _transform_function(self._spec.resize, options.keep_resolution)
        transforms = []
        for scale in options.scales:
            transform = transform_for(self._spec, width_px, height_px, scale)
            self._check_size(transform, options)
            transforms.append(transform)
            if options.add_flipped_input:
                transforms.append(replace(transform, flipped=True))
        return tuple(transforms)

    def _check_size(self, transform: ImageTransform, options: InputOptions) -> None:
        resized_width, resized_height = transform.resized_width_px, transform.resized_height_px
        received = (
            f"At test scale {transform.test_scale:g} the image has "
            f"{resized_width} x {resized_height} pixels"
        )
        if (
            resized_width * resized_height > self._max_image_pixels
            or max(resized_width, resized_height) > MAX_SIDE_PX
        ):
            raise ImageSizeError(
                f"{received}; at most {self._max_image_pixels} in total and {MAX_SIDE_PX} per "
                "side are accepted. Send a smaller image or omit the larger scales."
            )
        if options.keep_resolution and self._spec.free_size is not None:
            self._check_free_size(transform, self._spec.free_size, received)

    def _check_free_size(
        self, transform: ImageTransform, free_size: FreeSize, received: str
    ) -> None:
        """Check the input size that ``keep_resolution`` leads to."""
        width, height = transform.input_width_px, transform.input_height_px
        if max(width, height) > free_size.max_side_px:
            raise ImageSizeError(
                f"{received}, which need a network input of {width} x {height}; with "
                f"keep_resolution the model accepts at most {free_size.max_side_px} per side. "
                "Send a smaller image or smaller scales, or omit keep_resolution if the model "
                "allows it."
            )
        if width * height < self._min_input_pixels:
            raise ImageSizeError(
                f"{received}, which give a network input of {width} x {height}; with "
                f"keep_resolution the model needs at least {self._min_input_pixels} pixels in "
                "total. Send a larger image or larger scales, or omit keep_resolution if the "
                "model allows it."
            )


def _letterbox(spec: InputSpec, width_px: int, height_px: int, test_scale: float) -> ImageTransform:
    """Scale the longer side of the *unscaled* image to the width of the input, centers aligned.

    The fixed-resolution test of the reference implementation. In spite of its name it ignores the
    height of the input: an image with a taller aspect ratio than the input is cropped at top and
    bottom. A test scale changes how large the image appears in the same input.
    """
    return _centered(
        spec, width_px, height_px, test_scale, spec.width_px / max(width_px, height_px)
    )


def _fit_width(spec: InputSpec, width_px: int, height_px: int, test_scale: float) -> ImageTransform:
    """Fit the width of the image to that of the input; crop or pad the height (3D boxes)."""
    return _centered(spec, width_px, height_px, test_scale, spec.width_px / width_px)


def _crop_or_pad(
    spec: InputSpec, width_px: int, height_px: int, test_scale: float
) -> ImageTransform:
    """Crop or pad both sides around the center without scaling (3D boxes, keep_resolution)."""
    return _centered(spec, width_px, height_px, test_scale, 1.0)


def _centered(
    spec: InputSpec, width_px: int, height_px: int, test_scale: float, scale: float
) -> ImageTransform:
    """Return the transform that scales the resized image and aligns its center with the input's."""
    resized_width, resized_height = _resized(width_px, height_px, test_scale)
    to_input = AffineTransform.centered(
        scale,
        (resized_width / 2, resized_height / 2),
        (spec.width_px / 2, spec.height_px / 2),
    )
    return ImageTransform(
        resized_width,
        resized_height,
        spec.width_px,
        spec.height_px,
        to_input,
        test_scale,
        padding_rgb=spec.padding_rgb,
    )


def _keep_resolution(
    spec: InputSpec, width_px: int, height_px: int, test_scale: float
) -> ImageTransform:
    """Pad to the next size that the network accepts, translating by whole pixels.

    Half sizes are rounded down on both sides, by the reference implementations of *Objects as
    Points* and of the corner models alike.
    """
    assert spec.free_size is not None, "keep_resolution is accepted for such models only"
    resized_width, resized_height = _resized(width_px, height_px, test_scale)
    input_width = _padded(resized_width, spec.free_size)
    input_height = _padded(resized_height, spec.free_size)
    to_input = AffineTransform(
        1.0, input_width // 2 - resized_width // 2, input_height // 2 - resized_height // 2
    )
    return ImageTransform(
        resized_width,
        resized_height,
        input_width,
        input_height,
        to_input,
        test_scale,
        padding_rgb=spec.padding_rgb,
    )


def _padded(side_px: int, free_size: FreeSize) -> int:
    """Return the padded side, in pixels; see :class:`model_package.FreeSize` for the rule."""
    return (side_px | (free_size.multiple_px - 1)) + free_size.extra_px


def _resized(width_px: int, height_px: int, test_scale: float) -> tuple[int, int]:
    return int(width_px * test_scale), int(height_px * test_scale)


_TransformFunction = Callable[[InputSpec, int, int, float], ImageTransform]


def _transform_function(resize: ResizeMode, keep_resolution: bool) -> _TransformFunction:
    """Return the function for the manifest's ``input.resize`` and the request's option."""
    match resize:
        case "letterbox":
            return _keep_resolution if keep_resolution else _letterbox
        case "fit_width":
            return _crop_or_pad if keep_resolution else _fit_width
        case "keep_resolution":
            return _keep_resolution
        case _:
            assert_never(resize)
