"""The files that docs/service.md shows whole, as whoever reads it would copy them."""

import re
from pathlib import Path

DOCUMENT = Path(__file__).parents[2] / "docs" / "service.md"
BLOCK = re.compile(r"^```(?:ini|python|sh|sql|toml)\n(.*?)^```", re.MULTILINE | re.DOTALL)
NAMED = re.compile(r"(?:#!.*\n)?(?:#|--) ([\w-]+\.\w+)\b")


def examples() -> dict[str, str]:
    """File name -> content: each block whose first comment begins with a name."""
    blocks = BLOCK.findall(DOCUMENT.read_text(encoding="utf-8"))
    return {named[1]: block for block in blocks if (named := NAMED.match(block))}


def units() -> dict[str, str]:
    """Those of them that systemd reads."""
    kinds = (".service", ".mount")
    return {name: text for name, text in examples().items() if name.endswith(kinds)}
