"""How a page is made: one template with the common frame, numbers as text, pictures as data of the page itself."""

import base64
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from ddpm.report.charts import short

_TEMPLATES = Path(__file__).with_name("templates")
_ABSENT = "–"


@dataclass(frozen=True)
class Picture:
    """A PNG inside of the page. alt: what it shows, for those who do not see it."""

    address: str
    width: int
    height: int
    alt: str
    caption: str


def read_picture(path: Path, alt: str, caption: str = "") -> Picture | None:
    """The PNG at ``path``, None where there is none. Raises OSError."""
    if not path.is_file():
        return None
    content = path.read_bytes()
    width, height = struct.unpack(">2I", content[16:24])  # of the header that every PNG begins with
    return Picture(f"data:image/png;base64,{base64.b64encode(content).decode()}", width, height, alt, caption)


def render(template: str, **values: Any) -> str:  # noqa: ANN401
    """Fill a template of this package; what is not markup already is escaped, what is missing is an error."""
    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "setting": setting}
    return environment.get_template(template).render(values)


def number(value: Any) -> str:  # noqa: ANN401
    """A value of a file of metrics as people write it."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _ABSENT if value is None else short(value) if isinstance(value, int | float) else str(value)


def setting(value: Any) -> str:  # noqa: ANN401
    """A value of a parameter as params.yaml has it."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(setting, value))}]"
    return str(value).lower() if isinstance(value, bool) else "null" if value is None else str(value)


def flat(values: Mapping[str, Any], start: str = "") -> dict[str, Any]:
    """Nested mappings as one, its keys joined by dots."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= flat(value, f"{start}{key}.") if isinstance(value, Mapping) else {f"{start}{key}": value}
    return found
