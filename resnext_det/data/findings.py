"""Findings of the dataset doctor, collected by their code."""

import reprlib
from dataclasses import dataclass, field

from .finding_codes import CODES

SEVERITIES = ("error", "warning", "note")
MAX_EXAMPLES = 5


class Words(str):
    """Text of an example that is shown without quotes."""

    __repr__ = str.__str__


@dataclass
class Finding:
    """One kind of mistake and where it is.

    Attributes:
        severity: one of `SEVERITIES`.
        code: a key of `CODES`.
        message: what is wrong, what Detectron2 would do with it, what to do.
        count: how often it was found, at least 1.
        examples: at most `MAX_EXAMPLES` places, with ids and paths.
    """

    severity: str
    code: str
    message: str
    count: int = 0
    examples: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        head = f"{self.severity} {self.code} ({self.count}): {self.message}"
        more = [f"    ... and {self.count - len(self.examples)} more"]
        hidden = self.count > len(self.examples) > 0
        return "\n".join([head, *(f"    {e}" for e in self.examples), *(more if hidden else [])])


_REPR = reprlib.Repr()
_REPR.maxlist = _REPR.maxdict = 8
_REPR.maxlevel = 3
_REPR.maxstring = _REPR.maxother = 200


def shown(value: object) -> str:
    """Show a JSON value on one line, shortened."""
    return _REPR.repr(value)


class Findings:
    """Collects findings by code; the text of an example is only made where it is kept."""

    def __init__(self) -> None:
        self._by_code: dict[str, Finding] = {}

    def add(self, code: str, template: str = "", *values: object) -> None:
        """Count one more of `code`; `values` fill the braces of `template`, each on one line."""
        finding = self._by_code.get(code)
        if finding is None:
            severity, message = CODES[code]
            finding = self._by_code[code] = Finding(severity, code, message)
        finding.count += 1
        if template and len(finding.examples) < MAX_EXAMPLES:
            finding.examples.append(template.format(*map(shown, values)))

    def __getitem__(self, code: str) -> Finding:
        return self._by_code[code]

    def __contains__(self, code: str) -> bool:
        return code in self._by_code

    def as_list(self) -> list[Finding]:
        """Return the findings, errors first, in the order of `CODES`."""
        order = list(CODES)
        return sorted(
            self._by_code.values(),
            key=lambda f: (SEVERITIES.index(f.severity), order.index(f.code)),
        )

    def exit_status(self) -> int:
        """Return 2 where there is an error, 3 where the worst is a warning, else 0."""
        severities = {f.severity for f in self._by_code.values()}
        return 2 if "error" in severities else 3 if "warning" in severities else 0
