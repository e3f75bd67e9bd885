"""Data sets of one's own in COCO's format, named on the command line and kept with the run."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from detectron2.data import DatasetCatalog, MetadataCatalog

from ..atomic import replacing
from ..errors import UserError
from .coco_splits import load_coco_file

RECORD = "datasets.json"  # in the run's folder


@dataclass(frozen=True)
class CustomData:
    """A COCO file and its images.

    Attributes:
        json_file: absolute path.
        image_root: absolute path of the folder that its file names are below.
        categories: (id, name) of each category, by id: Detectron2's order of classes.
    """

    json_file: str
    image_root: str
    categories: tuple[tuple[int, str], ...]

    @classmethod
    def read(cls, json_file: str, image_root: str) -> "CustomData":
        """Look at a COCO file's categories.

        Raises:
            UserError: if the file or the folder is absent, or it is not COCO JSON with categories.
        """
        path, images = Path(json_file), Path(image_root)
        if not path.is_file():
            raise UserError(f"{path} is no file: a COCO annotation file is needed")
        if not images.is_dir():
            raise UserError(f"{images} is no folder: the folder of {path}'s images is needed")
        try:
            content = json.loads(path.read_bytes())
            categories = sorted((c["id"], c["name"]) for c in content["categories"])
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"{path} is not a COCO annotation file: {reason}") from error
        if not categories:
            raise UserError(f"{path} lists no category")
        for index, name in categories:
            if not isinstance(index, int) or not isinstance(name, str):
                raise UserError(f"{path}: category {index!r} {name!r} is not a number with a name")
        names = [name for _, name in categories]
        if len(set(names)) < len(names) or len({i for i, _ in categories}) < len(categories):
            raise UserError(f"{path}: a category's id or name occurs twice")
        return cls(str(path.absolute()), str(images.absolute()), tuple(categories))

    @property
    def classes(self) -> list[str]:
        """Names in the order of Detectron2's contiguous ids."""
        return [name for _, name in self.categories]

    def register(self, name: str) -> None:
        """Make it known to Detectron2 as `name`, in place of an earlier one of that name."""
        if name in DatasetCatalog:
            DatasetCatalog.remove(name)
        if name in MetadataCatalog:
            MetadataCatalog.remove(name)
        path, images = Path(self.json_file), Path(self.image_root)
        DatasetCatalog.register(name, lambda: load_coco_file(path, images, name))
        MetadataCatalog.get(name).set(
            json_file=self.json_file,
            image_root=self.image_root,
            evaluator_type="coco",
            thing_classes=self.classes,
            thing_dataset_id_to_contiguous_id={
                category: index for index, (category, _) in enumerate(self.categories)
            },
        )


def read_custom_data(
    train: Sequence[tuple[str, str]], val: Sequence[tuple[str, str]]
) -> dict[str, CustomData]:
    """Read the files of a command line.

    Args:
        train: pairs of a COCO file and a folder of images.
        val: likewise, for evaluation.

    Returns:
        Data sets by name: custom_train, custom_train_2, ..., custom_val, ...

    Raises:
        UserError: for a file that cannot be used, or if two of them differ in categories.
    """
    found = {}
    for kind, pairs in (("custom_train", train), ("custom_val", val)):
        for number, pair in enumerate(pairs, 1):
            found[kind if number == 1 else f"{kind}_{number}"] = CustomData.read(*pair)
    first = next(iter(found.values()), None)
    for other in found.values():
        _require_equal_categories(first, other)
    return found


def _require_equal_categories(first: CustomData, other: CustomData) -> None:
    """Detectron2 numbers the classes of each file by itself: unequal tables mix them up."""
    ours, theirs = dict(first.categories), dict(other.categories)
    ids = [i for i in sorted({*ours, *theirs}) if ours.get(i) != theirs.get(i)]
    if ids:
        shown = [f"{i}: {ours.get(i, 'absent')} / {theirs.get(i, 'absent')}" for i in ids[:5]]
        more = f", ... ({len(ids)} in all)" if len(ids) > 5 else ""
        raise UserError(
            f"{first.json_file} and {other.json_file} differ in categories "
            f"({', '.join(shown)}{more}): give both the same ids and names"
        )


def overrides_for(data: dict[str, CustomData]) -> list[str]:
    """The config's KEY VALUE pairs for these data sets: their names, and the number of classes."""
    if not data:
        return []
    train = tuple(name for name in data if name.startswith("custom_train"))
    val = tuple(name for name in data if name.startswith("custom_val"))
    classes = str(len(next(iter(data.values())).categories))
    words = ["MODEL.ROI_HEADS.NUM_CLASSES", classes, "MODEL.RETINANET.NUM_CLASSES", classes]
    if train:
        words += ["DATASETS.TRAIN", str(train)]
    return [*words, "DATASETS.TEST", str(val)]


def keep_with_run(source: Path, data: dict[str, CustomData], folder: Path) -> None:
    """Write what is needed to register the data sets again into a run's folder.

    Args:
        source: the folder of the config, which may be an earlier run's.
        data: further ones; they win.
        folder: the run's.
    """
    data = {**data_of_run(source), **data}
    if not data:
        return
    content = {name: asdict(item) for name, item in data.items()}
    with replacing(folder / RECORD) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def data_of_run(folder: Path) -> dict[str, CustomData]:
    """The data sets that a run's folder tells of, by name; a folder without any gives none.

    Raises:
        UserError: if its record is damaged.
    """
    file = folder / RECORD
    if not file.is_file():
        return {}
    try:
        return {
            name: CustomData(
                str(item["json_file"]),
                str(item["image_root"]),
                tuple((int(i), str(n)) for i, n in item["categories"]),
            )
            for name, item in json.loads(file.read_text(encoding="utf-8")).items()
        }
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"{file} is damaged ({error}): name the data sets anew") from error
