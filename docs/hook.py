"""A hook of mkdocs: the site holds the repository's pages and pictures at their paths, so that links work there."""

from __future__ import annotations

import subprocess
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

KINDS = (".md", ".png", ".cff")
LISTED = ("git", "ls-files", "--cached", "--others", "--exclude-standard")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replaces the pages of docs by those of the repository, from README.md down."""
    root = Path(config.config_file_path).parent
    for file in [file for file in files if file.src_dir == config.docs_dir]:
        files.remove(file)
    for path in subprocess.run(LISTED, cwd=root, capture_output=True, text=True, check=True).stdout.splitlines():
        if path.endswith(KINDS) and ("/" not in path or path.startswith(("docs/", "benchmarks/"))):
            files.append(File(path, str(root), config.site_dir, config.use_directory_urls))
    return files
