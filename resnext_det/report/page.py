"""Pages from content: templates, number formats, and the file."""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path

import jinja2
from markupsafe import Markup

from ..atomic import replacing
from ..errors import UserError
from ..evaluation.comparison import distinct_names
from .content import run_content
from .differences import comparison_content
from .reading import read_run

IMAGES_LIMIT = 100  # of a gallery: a larger page would not open on a phone


def write_report(
    folder: Path, output: Path | None = None, *, images: int = 8, threshold: float = 0.5
) -> Path:
    """Write a run's page. The same run gives the same bytes.

    Args:
        folder: an `OUTPUT_DIR` that was evaluated.
        output: the HTML file; None for `report.html` in the folder.
        images: in the gallery of each test set, 0 to `IMAGES_LIMIT`, half of them the best and
            half the worst.
        threshold: lowest score of a prediction in the gallery, 0 to 1.

    Returns:
        The file written.

    Raises:
        UserError: for other values, if a file of the run is absent or damaged, or if the page
            cannot be written.
    """
    if not 0 <= images <= IMAGES_LIMIT:
        raise UserError(f"--images {images}: a gallery has 0 to {IMAGES_LIMIT} images")
    if not 0 <= threshold <= 1:
        raise UserError(f"--threshold {threshold:g}: a score is 0 to 1")
    output = _html_file(output or folder / "report.html")
    content = run_content(read_run(folder), images=images, threshold=threshold)
    _write("run.html", content, output)
    return output


def write_comparison(folders: Sequence[Path], output: Path) -> Path:
    """Write a page that compares runs with the first of them.

    Args:
        folders: two or more, all different, each as of `write_report`.
        output: the HTML file.

    Returns:
        The file written.

    Raises:
        UserError: as `write_report`.
    """
    output = _html_file(output)
    once = {folder.resolve(): folder for folder in folders}
    if len(once) < 2:
        raise UserError(f"{folders[0]} is named twice: a comparison needs two runs")
    runs = [read_run(folder) for folder in once.values()]
    content = comparison_content(runs, distinct_names(list(once)))
    _write("comparison.html", content, output)
    return output


def _html_file(path: Path) -> Path:
    if path.suffix.lower() not in (".html", ".htm"):
        raise UserError(f"--output {path}: name a .html file")
    if path.is_dir():
        raise UserError(f"--output {path} is a folder: name a .html file")
    return path


def _write(template: str, content: dict, output: Path) -> None:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(__package__, "templates"),
        autoescape=True,  # names of classes, files and runs are foreign text
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=_percent, signed=_signed, sentence=_sentence)
    templates = resources.files(__package__) / "templates"
    for name in ("style.css", "page.js"):  # our own text, not escaped
        environment.globals[name.replace(".", "_")] = Markup(
            (templates / name).read_text(encoding="utf-8")
        )
    html = environment.get_template(template).render(content)
    with replacing(output) as temporary:
        temporary.write_text(html + "\n", encoding="utf-8", errors="replace")


def _percent(value: float | None) -> str:
    return "n/a" if value is None else f"{value:.1f}"


def _sentence(text: str) -> str:
    """Of a message that a log would show without a capital and a full stop."""
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?")) else ".")


def _signed(value: float | None) -> str:
    return "n/a" if value is None else f"{value:+.1f}".replace("-", "\N{MINUS SIGN}")
