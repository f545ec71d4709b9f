"""The wheel's readme: the README with pictures and links by their addresses, so that a package index shows them too."""

import re
from pathlib import Path

from hatchling.metadata.plugin.interface import MetadataHookInterface

BRANCH = "main"


class Readme(MetadataHookInterface):
    """Sets `project.readme`."""

    def update(self, metadata: dict) -> None:
        """Replace relative addresses `![...](path)` and `[...](path)` by those in the repository.

        Args:
            metadata: the `[project]` table of pyproject.toml; its `readme` is set.
        """
        repository = metadata["urls"]["Repository"]
        raw = repository.replace("github.com", "raw.githubusercontent.com")
        text = (Path(self.root) / "README.md").read_text(encoding="utf-8")
        text = re.sub(r"(!\[[^]]*\]\()(?!https?:)", rf"\1{raw}/{BRANCH}/", text)
        text = re.sub(r"((?<!!)\[[^]!]*\]\()(?!https?:|#)", rf"\1{repository}/blob/{BRANCH}/", text)
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
