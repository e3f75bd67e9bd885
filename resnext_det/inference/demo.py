"""Detect objects in images and videos, and write pictures of them and files."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm

from ..errors import UserError
from .predictor import Predictor
from .runner import Options, Runner, Summary
from .sources import find_sources, require_apart

logger = logging.getLogger(__name__)


def run_demo(
    config: str,
    weights: str | None,
    inputs: Sequence[str],
    output: Path,
    options: Options,
    *,
    overrides: Sequence[str] = (),
    say: Callable[[str], None] = logger.info,
) -> Summary:
    """Detect objects and draw them, a picture an image into `output`.

    Pictures have the name of their image, with a number where two have the same, and its size;
    small ones are enlarged. A video becomes `<name>.mp4` with the same size, frame rate and number
    of frames, and `<name>.json`. An input that cannot be read, or nothing written of, is named in a
    warning and left out. After a Ctrl-C what was found so far is written.

    Args:
        config: see `Predictor`.
        weights: see `Predictor`.
        inputs: see `find_sources`.
        output: folder, made if it is not there.
        options: what is detected and written.
        overrides: KEY VALUE words.
        say: gets a line about each input where no progress bar is shown.

    Raises:
        UserError: for a mistake in these, if a file of all images cannot be written, or if all
            inputs are left out.
    """
    sources = find_sources(inputs)[: options.limit]
    require_apart(sources, output)
    videos = [source for source in sources if source.is_video]
    if options.coco and videos:
        raise UserError(f"--coco is for images: the frames of {videos[0].path} have no image id")
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = "it is a file" if output.is_file() else error.strerror
        raise UserError(f"--output {output} cannot be made: {reason}") from error
    predictor = Predictor(
        config,
        weights,
        overrides=overrides,
        batch_size=options.batch,
        optimize=options.optimize,
    )
    runner = Runner(predictor, output, options, len(sources))
    try:
        with _progress(len(sources), say) as advance:
            for source, line in runner.run(sources):
                advance(f"{source.shown}: {line}")
    except KeyboardInterrupt:
        return runner.finish(stopped=True)
    return runner.finish()


@contextlib.contextmanager
def _progress(total: int, say: Callable[[str], None]) -> Iterator[Callable[[str], None]]:
    """A bar on a terminal; elsewhere each line goes to `say`."""
    with tqdm(total=total, unit="input", disable=None) as bar, logging_redirect_tqdm():

        def advance(line: str) -> None:
            if bar.disable:
                say(line)
            bar.update()

        yield advance
