#!/usr/bin/env python
"""Count parameters and multiply-adds.

python tools/analyze_model.py --table 1                        # beside the paper's figures
python tools/analyze_model.py --config-file configs/faster_rcnn_X50_32x4d.yaml --input 800x1216
"""

import argparse
import json
import re
import sys
from pathlib import Path

from resnext_det import complexity
from resnext_det.config import load_config
from resnext_det.engine import check_config
from resnext_det.errors import UserError
from resnext_det.quiet import silence_deprecations


def parse_size(text: str) -> tuple[int, int]:
    """Read HEIGHTxWIDTH in pixels."""
    match = re.fullmatch(r"(\d{2,4})x(\d{2,4})", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not HEIGHTxWIDTH, e.g. 800x1216")
    return int(match[1]), int(match[2])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--table", choices=complexity.TABLES, help="a table of the paper")
    what.add_argument("--config-file", help="a detector: a path or the name of a shipped config")
    parser.add_argument("--input", type=parse_size, help="image size (default 800x1216)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures as JSON")
    parser.add_argument(
        "--plot", type=Path, metavar="PNG", help="plot cardinality against width and parameters"
    )
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="config overrides")
    args = parser.parse_args()
    if args.table and (args.input or args.opts):
        parser.error("--input and overrides go with --config-file; a table has its own sizes")
    silence_deprecations()
    try:
        if args.table:
            result = complexity.table(args.table)
            print(complexity.format_table(result))
        else:
            cfg = load_config(args.config_file, args.opts)
            check_config(cfg)
            result = complexity.detector_complexity(cfg, *(args.input or (800, 1216)))
            print(complexity.format_detector(result))
        if args.json:
            args.json.write_text(json.dumps(complexity.as_json(result), indent=2) + "\n")
        if args.plot:
            complexity.plot_cardinality(args.plot)
    except (UserError, OSError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
