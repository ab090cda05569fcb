"""Files at URLs: `s3://`, `https://`, `hf://` and whatever else fsspec knows.

Wherever neuzip_rs takes a path it takes a URL. Reading fetches ranges: a tensor costs the header
and its own bytes. Reading everything decodes what has arrived while the rest is under way. Writing
makes the file here first and sends it when it is complete.

fsspec is imported with the first URL, and needs a package for most protocols (s3fs, gcsfs, aiohttp,
huggingface_hub, ...), which brings options and credentials of its own.
"""

from neuzip_rs.remote.download import download
from neuzip_rs.remote.places import Places, is_url, local_path

__all__ = ["Places", "download", "is_url", "local_path"]
