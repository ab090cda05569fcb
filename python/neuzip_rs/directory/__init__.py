"""Model directories: every .safetensors file compressed under its own name, the rest kept.

    compress_directory(Path("model"), Path("model-nz"))
    decompress_directory(Path("model-nz"), Path("model"))   # every file byte for byte

A compressed directory is a directory that loaders understand: shards, index and configuration have
the names they had. What a file is, is decided by its content, links are followed, and

- .safetensors files are stored as compressed .safetensors files;
- what several files have in common is stored once (`neuzip_rs.directory.doubles`);
- `config.json` says that the weights are compressed (`neuzip_rs.directory.config`);
- all other files, and everything in a git repository's own folder, are copied;
- `neuzip_manifest.json` says what everything was (`neuzip_rs.directory.manifest`).

Both directions build the result next to its place and rename it when it is complete; a run that
was interrupted goes on where it stopped (`neuzip_rs.directory.workspace`).
"""

from neuzip_rs.directory.check import verify_directory
from neuzip_rs.directory.manifest import MANIFEST_NAME, Entry, Kind, Manifest
from neuzip_rs.directory.pack import compress_directory
from neuzip_rs.directory.places import PlaceError
from neuzip_rs.directory.restore import decompress_directory
from neuzip_rs.directory.transfer import DirectoryResult

__all__ = [
    "MANIFEST_NAME",
    "DirectoryResult",
    "Entry",
    "Kind",
    "Manifest",
    "PlaceError",
    "compress_directory",
    "decompress_directory",
    "verify_directory",
]
