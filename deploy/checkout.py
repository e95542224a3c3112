"""The checkout: the nodes that its lab has, and the files of it that nodes get."""

from pathlib import Path

CHECKOUT = Path(__file__).resolve().parent.parent
NODES_FILE = CHECKOUT / "nodes_info.json"


def part(name: str, **values: str) -> str:
    """A text that nodes get, with `values` where it says `@NAME@`.

    With Linux's line ends, whatever the checkout's are.
    """
    text = (CHECKOUT / name).read_text(encoding="utf-8")
    for key, value in values.items():
        text = text.replace(f"@{key}@", value)
    return text
