"""Names of images: files, URLs and other names that GDAL knows."""

import re
from pathlib import Path


def is_remote(name: str) -> bool:
    """Return whether a name is one that only GDAL understands: a URL, a ``/vsi`` path or a subdataset."""
    return re.match(r"/vsi|[a-z][a-z0-9+]*://|[A-Za-z0-9_]{2,}:", name) is not None and not Path(name).exists()


def shown_name(name: str) -> str:
    """Return a name for messages: as given, or a URL without its user, password and query."""
    return without_secrets(name) if is_remote(name) else name


def without_secrets(text: str) -> str:
    """Return a text whose URLs have no user, password and query."""
    return re.sub(r"(?<=://)[^/\s'\"]*@|\?[^\s'\"]*", "", text)
