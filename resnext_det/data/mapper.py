"""Detectron2's dataset mapper with an error that names the image."""

from detectron2.data import DatasetMapper
from detectron2.data.detection_utils import SizeMismatchError
from PIL import Image

from ..errors import UserError, one_line


class NamingDatasetMapper(DatasetMapper):
    """`DatasetMapper` that says which image cannot be used.

    Raises:
        UserError: for an image that is absent, damaged, or of another size than annotated, or whose
            annotations cannot be used.
    """

    def __call__(self, dataset_dict: dict) -> dict:
        try:
            return super().__call__(dataset_dict)
        except (OSError, SyntaxError, SizeMismatchError, Image.DecompressionBombError) as error:
            reason = one_line(error)
            raise UserError(f"cannot read image {dataset_dict['file_name']}: {reason}") from error
        except (ValueError, LookupError, TypeError, AssertionError) as error:
            reason = f"{type(error).__name__}: {one_line(error)}"
            raise UserError(
                f"cannot use the annotations of image {dataset_dict['file_name']}: {reason}"
            ) from error
