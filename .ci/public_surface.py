"""Breaking changes of the public names since the last tag.

    python .ci/public_surface.py [TAG]

`griffe check decodekit` would also report files that move inside the package. This script compares only
the names that `decodekit`, `decodekit.rng`, `decodekit.testing` and `decodekit.compat.hf` export, with their
members and parameters. It ends with 1 if one of them was removed or changed in a way that breaks callers,
unless the newest version of the changelog names it under "Removed".
"""

import re
import subprocess
import sys
from pathlib import Path

import griffe

ROOT = Path(__file__).parents[1]
PUBLIC = {"decodekit", "decodekit.compat", "decodekit.compat.hf", "decodekit.rng", "decodekit.testing"}


def last_tag(root: Path) -> str | None:
    """The newest tag that the current commit descends from, or None."""
    command = ["git", "describe", "--tags", "--abbrev=0"]
    found = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)  # noqa: S603
    return found.stdout.strip() or None


def mark_public(module: griffe.Object | griffe.Alias) -> None:
    """Mark the exported names of the public modules as public, and all other modules as private."""
    for name, member in module.members.items():
        if isinstance(member, griffe.Alias):
            member.public = not name.startswith("_") and member.target_path.startswith("decodekit.")
        elif member.is_module:
            member.public = member.path in PUBLIC
            if member.public:
                mark_public(member)


def breaking_changes(root: Path, tag: str) -> list[str]:
    """One line for each breaking change between a tag and the files in `root`."""
    old = griffe.load_git("decodekit", ref=tag, repo=root)
    new = griffe.load("decodekit", search_paths=[root], try_relative_path=False)
    mark_public(old)
    mark_public(new)
    changes = griffe.find_breaking_changes(old, new)
    return sorted({re.sub(r"\x1b\[\d+m", "", change.explain()) for change in changes})


def removed_on_purpose(changelog: str) -> set[str]:
    """The names in the section "Removed" of the newest version."""
    newest = re.split(r"^## ", changelog, flags=re.MULTILINE)[1]
    sections = re.split(r"^### ", newest, flags=re.MULTILINE)
    return {
        name
        for section in sections
        if section.startswith("Removed")
        for name in re.findall(r"`(\w+)`", section)
    }


def main(tag: str | None) -> int:
    """Print the breaking changes since `tag`, and return the exit status."""
    if tag is None:
        print("There is no tag yet, so there is no older public surface to compare with.")
        return 0
    removed = removed_on_purpose((ROOT / "CHANGELOG.md").read_text())
    changes = [line for line in breaking_changes(ROOT, tag) if removed.isdisjoint(re.findall(r"\w+", line))]
    print(*changes, f"{len(changes)} unannounced breaking changes of public names since {tag}.", sep="\n")
    return min(len(changes), 1)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1] if sys.argv[1:] else last_tag(ROOT)))
