"""What the dataset doctor can find, and what it says about it.

Each code stands for one kind of mistake. Its message says what is wrong, what Detectron2 would do
with it, and what to do.
"""

# code: (severity, message). error: training or evaluation stops or learns from wrong data;
# warning: data is lost or changed in silence; note: worth knowing.
CODES = {
    "json-nan": (
        "warning",
        "NaN or Infinity in the file, which is not JSON: Python reads it, other programs may "
        "refuse the file; write null or leave the key out",
    ),
    "categories-none": (
        "error",
        "no categories: Detectron2 cannot number the classes; list them under 'categories'",
    ),
    "category-type": (
        "error",
        "categories without an integer 'id' and a text 'name': Detectron2 cannot number the "
        'classes; write {"id": 1, "name": "cat"}',
    ),
    "category-duplicate": (
        "error",
        "category ids given twice: Detectron2 keeps the last name for the objects of both; give "
        "each class its own id",
    ),
    "category-name": (
        "warning",
        "class names given to several ids: they are trained as different classes; merge them if "
        "they are one",
    ),
    "category-empty": (
        "note",
        "classes without objects: they cannot be learnt, and their AP is nan",
    ),
    "categories-differ": (
        "error",
        "classes that differ from those of --against: Detectron2 numbers each file's classes by "
        "their sorted ids, so a detection would be scored as another class; give both files one "
        "category table",
    ),
    "categories-ids": (
        "warning",
        "classes with other ids in --against, in the same order: training and evaluation work, "
        "but detections carry the ids of one file; give both files one category table",
    ),
    "images-none": ("error", "no images: there is nothing to train on; list them under 'images'"),
    "image-type": (
        "error",
        "images that are not objects: Detectron2 cannot load the file; write "
        '{"id": 1, "file_name": "a.jpg", "width": 640, "height": 480}',
    ),
    "image-id": (
        "error",
        "images whose 'id' is not an integer: Detectron2 cannot sort or match them; number them",
    ),
    "image-duplicate": (
        "error",
        "image ids given twice: Detectron2 keeps the last and gives it the objects of all; give "
        "each image its own id",
    ),
    "image-name": (
        "error",
        "images without a usable 'file_name': Detectron2 cannot find them; write the path below "
        "the image folder",
    ),
    "image-outside": (
        "error",
        "file names that leave the image folder: another machine will not have these files; "
        "write paths below the image folder",
    ),
    "image-same-file": (
        "warning",
        "files listed under several ids: each copy is trained on with a part of the objects, the "
        "rest as background; merge them",
    ),
    "image-dimensions": (
        "error",
        "images whose 'width' and 'height' are not positive integers (pixels): Detectron2 stops at "
        "them; write the size of the image",
    ),
    "image-empty": (
        "note",
        "images without objects, or with crowds only: training drops them unless "
        "DATALOADER.FILTER_EMPTY_ANNOTATIONS is False, evaluation keeps them",
    ),
    "annotations-none": (
        "warning",
        "no annotations: the file serves for prediction only; training on it stops, and AP is -1",
    ),
    "annotation-type": (
        "error",
        "annotations that are not objects: Detectron2 cannot load the file; write "
        '{"id": 1, "image_id": 1, "category_id": 1, "bbox": [x, y, width, height], ...}',
    ),
    "annotation-id": (
        "error",
        "annotations whose 'id' is not an integer: Detectron2 and pycocotools need one; number "
        "them",
    ),
    "annotation-zero-id": (
        "warning",
        "annotations with id 0: pycocotools takes 0 as 'no match' and counts a right detection as "
        "false; number from 1",
    ),
    "annotation-duplicate": (
        "error",
        "annotation ids given twice: Detectron2 refuses the file; give each annotation its own id",
    ),
    "annotation-image": (
        "error",
        "annotations of images that are not listed: Detectron2 leaves them out; list the image, or "
        "drop them (ids are compared with their type: '7' is not 7)",
    ),
    "annotation-category": (
        "error",
        "annotations of categories that are not listed: Detectron2 stops with a KeyError; list the "
        "category, or drop them",
    ),
    "annotation-ignore": (
        "error",
        "annotations with 'ignore' set: Detectron2 refuses the file; use 'iscrowd': 1, or drop "
        "them",
    ),
    "crowd": (
        "note",
        "crowds ('iscrowd': 1): training leaves them out, evaluation does not count detections "
        "inside them",
    ),
    "crowd-missing": (
        "warning",
        "annotations without 'iscrowd': training takes them as 0, evaluation stops with a "
        "KeyError; write 0",
    ),
    "crowd-bool": (
        "warning",
        "annotations whose 'iscrowd' is true or false: other readers may refuse it; write 1 or 0",
    ),
    "crowd-value": (
        "error",
        "annotations whose 'iscrowd' is not 0 or 1: training takes all but 0 as a crowd and leaves "
        "it out; write 0 or 1",
    ),
    "box-type": (
        "error",
        "boxes that are not four numbers: training stops; write 'bbox': [x, y, width, height] in "
        "pixels, numbers without quotes",
    ),
    "box-nan": (
        "error",
        "boxes with NaN, infinity or a number beyond 1e9: the loss becomes NaN; mend or drop them",
    ),
    "box-negative": (
        "error",
        "boxes of negative size: training drops them in silence; write [x, y, width, height], not "
        "corners",
    ),
    "box-zero": (
        "warning",
        "boxes of zero width or height: training drops them in silence, evaluation counts them as "
        "missed; drop them",
    ),
    "box-outside": (
        "error",
        "boxes wholly outside their image: training drops them in silence; look whether "
        "coordinates are in pixels of this image",
    ),
    "box-sticks-out": (
        "warning",
        "boxes that stick out of their image by more than 1 pixel: training clips them, evaluation "
        "does not, which lowers their IoU; clip them",
    ),
    "area": (
        "warning",
        "annotations whose 'area' is not a number of at least 0: training does not read it, "
        "evaluation stops; write the area of the mask or box in square pixels",
    ),
    "segmentation-type": (
        "error",
        "segmentations that are neither a list of polygons nor RLE: Detectron2 stops; write "
        "[[x1, y1, x2, y2, x3, y3, ...]]",
    ),
    "polygon-short": (
        "warning",
        "polygons with fewer than 3 points or an odd number of values: Detectron2 drops them, and "
        "the object with its last one; mend or drop them",
    ),
    "polygon-value": (
        "error",
        "polygons that hold something other than numbers below 1e9 in size: Detectron2 cannot draw "
        "the mask; mend or drop them",
    ),
    "rle": (
        "error",
        "bad RLE: Detectron2 cannot draw the mask; 'size' is [height, width] of the image and "
        "'counts' add up to height x width",
    ),
    "mask-none": (
        "note",
        "no object has a mask: train a detector without masks, such as faster_rcnn_X50_32x4d",
    ),
    "mask-mixed": (
        "warning",
        "objects without a mask among others with one: Mask R-CNN stops at such an image; "
        "complete or drop them, or train a detector without masks",
    ),
    "keypoints": (
        "error",
        "keypoints that are not triples of numbers: Detectron2 stops; write "
        "[x1, y1, visibility1, x2, ...]",
    ),
    "image-missing": (
        "error",
        "images that are not in the folder: training stops when it comes to one; add the file, or "
        "drop the image",
    ),
    "image-unreadable": (
        "error",
        "files that cannot be decoded as images: training stops when it comes to one; replace the "
        "file, or drop the image",
    ),
    "image-truncated": (
        "error",
        "truncated image files: training stops when it comes to one; copy the file again, or drop "
        "the image",
    ),
    "image-size": (
        "error",
        "images of another size than stated: Detectron2 stops with a SizeMismatchError, and boxes "
        "may lie wrong; write the true size after looking at the boxes",
    ),
    "image-exif": (
        "warning",
        "images that EXIF rotates or mirrors: Detectron2 turns them; look whether the boxes were "
        "drawn on the turned image",
    ),
    "image-huge": (
        "warning",
        "images of more than 89 million pixels: Pillow warns of a decompression bomb, and refuses "
        "twice as many; reduce them",
    ),
    "image-gray": (
        "note",
        "grayscale images: Detectron2 gives all three channels the same values",
    ),
    "image-alpha": (
        "note",
        "images with transparency: Detectron2 drops it and shows the colours behind it",
    ),
    "image-cmyk": (
        "warning",
        "CMYK images: Detectron2 converts them without their colour profile, so colours are off; "
        "convert them to RGB",
    ),
    "image-16-bit": (
        "warning",
        "images of more than 8 bits a channel: Detectron2 cuts values at 255, so most pixels are "
        "white; convert them to 8 bits",
    ),
}
