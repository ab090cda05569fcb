//! Output files that appear whole or not at all.
//!
//! The bytes go to a temporary name in the destination folder; `commit` makes them durable and gives
//! them the real name. Invariants: before `commit` the destination is untouched; an error, a panic or
//! an interrupt removes the temporary file (only a killed process leaves it behind); after a crash the
//! destination holds the old content or the new one.
//!
//! Place in docs/format-files.md: none.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::container::mapped::{at, name_file};
use crate::container::output::Output;
use crate::error::{Error, Result};

/// A file being written under a temporary name.
pub(crate) struct AtomicFile {
    temporary: NamedTempFile,
    folder: PathBuf,
    path: PathBuf,
    overwrite: bool,
}

impl AtomicFile {
    /// Starts a file that will be called `path`.
    ///
    /// # Errors
    /// `AlreadyExists` at once if there is one and `overwrite` is false, so that no work is lost.
    pub(crate) fn create(path: &Path, overwrite: bool) -> Result<Self> {
        refuse(path, overwrite).map_err(at(path))?;
        let folder = match path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder.to_path_buf(),
            _ => PathBuf::from("."),
        };
        let mut builder = tempfile::Builder::new();
        builder.prefix(".neuzip-").suffix(".tmp");
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            // What any new file gets; the umask applies. The crate's own default is private.
            builder.permissions(fs::Permissions::from_mode(0o666));
        }
        // The kind alone: the error would name the temporary file, which means nothing to the caller.
        let temporary = builder
            .tempfile_in(&folder)
            .map_err(|error| at(path)(error.kind().into()))?;
        Ok(Self {
            temporary,
            folder,
            path: path.to_path_buf(),
            overwrite,
        })
    }

    /// The file to write to.
    pub(crate) fn file(&mut self) -> &mut File {
        self.temporary.as_file_mut()
    }

    /// Makes the bytes durable, gives the file its name, and makes the name durable.
    ///
    /// # Errors
    /// `AlreadyExists` if the name was taken meanwhile and `overwrite` is false.
    pub(crate) fn commit(self) -> Result<()> {
        let Self {
            temporary,
            folder,
            path,
            overwrite,
        } = self;
        temporary.as_file().sync_all().map_err(at(&path))?;
        let persisted = if overwrite {
            temporary.persist(&path)
        } else {
            temporary.persist_noclobber(&path)
        };
        // The error owns the temporary file and removes it when dropped.
        persisted.map_err(|refused| at(&path)(refused.error))?;
        sync_folder(&folder).map_err(at(&folder))
    }
}

/// Refuses names that cannot be given to the result.
fn refuse(path: &Path, overwrite: bool) -> io::Result<()> {
    if path.file_name().is_none() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a file name",
        ));
    }
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
        Ok(_) if !overwrite => Err(io::ErrorKind::AlreadyExists.into()),
        // A link is replaced, never followed: the file it points to belongs to someone else (the
        // Hugging Face cache is built of such links).
        Ok(found) if found.is_file() || found.is_symlink() => Ok(()),
        Ok(found) if found.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        // Renaming over a device or a pipe would replace it by a file.
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a regular file",
        )),
    }
}

/// Writes the folder's new entry to the disk.
#[cfg(unix)]
fn sync_folder(folder: &Path) -> io::Result<()> {
    match File::open(folder).and_then(|opened| opened.sync_all()) {
        // Folders that may be written but not read, and file systems without this call: the rename
        // stands, and there is no other way to make it durable.
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::PermissionDenied
                    | io::ErrorKind::InvalidInput
                    | io::ErrorKind::Unsupported
            ) =>
        {
            Ok(())
        }
        result => result,
    }
}

/// Folders cannot be synced here; the rename itself is journalled.
#[cfg(not(unix))]
fn sync_folder(_folder: &Path) -> io::Result<()> {
    Ok(())
}

/// Runs `write` on a new file called `path`, which appears only if `write` succeeds.
pub(crate) fn write_atomically<T>(
    path: &Path,
    overwrite: bool,
    write: impl FnOnce(&mut Output<'_>) -> Result<T>,
) -> Result<T> {
    let mut file = AtomicFile::create(path, overwrite)?;
    // Inputs are mapped: a file system error that names no file can only be the output's.
    let named = |error: Error| name_file(error, path);
    let mut output = Output::new(file.file());
    let value = write(&mut output).map_err(named)?;
    output.flush().map_err(at(path))?;
    file.commit()?;
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let entries = fs::read_dir(folder).unwrap();
        let mut names: Vec<_> = entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        fs::write(&path, b"old").unwrap();
        let failed: Result<()> = write_atomically(&path, true, |file| {
            file.write_all(b"half of the n")?;
            Err(Error::Interrupted)
        });
        assert!(matches!(failed, Err(Error::Interrupted)));
        let unwound = std::panic::catch_unwind(|| {
            write_atomically(&path, true, |_| -> Result<()> { panic!("on purpose") })
        });
        assert!(unwound.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(folder.path()), ["out"]);
    }

    #[test]
    fn existing_files_need_permission_to_be_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        write_atomically(&path, false, |file| Ok(file.write_all(b"one")?)).unwrap();
        let refused = write_atomically(&path, false, |file| Ok(file.write_all(b"two")?));
        let Err(Error::Io(error)) = refused else {
            panic!("replaced")
        };
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        write_atomically(&path, true, |file| Ok(file.write_all(b"three")?)).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"three");
        // A name that is taken while the bytes are written counts as existing too.
        let raced = folder.path().join("raced");
        let refused = write_atomically(&raced, false, |_| Ok(fs::write(&raced, b"theirs")?));
        assert!(refused.is_err());
        assert_eq!(fs::read(&raced).unwrap(), b"theirs");
        assert_eq!(names(folder.path()), ["out", "raced"]);
    }

    #[test]
    fn folders_devices_and_bad_names_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        assert!(AtomicFile::create(folder.path(), true).is_err());
        assert!(AtomicFile::create(&folder.path().join("missing/out"), true).is_err());
        assert!(AtomicFile::create(Path::new(""), true).is_err());
        #[cfg(unix)]
        assert!(AtomicFile::create(Path::new("/dev/null"), true).is_err());
    }

    #[cfg(unix)]
    #[test]
    fn permissions_are_those_of_an_ordinary_file() {
        use std::os::unix::fs::MetadataExt;
        let folder = tempfile::tempdir().unwrap();
        let (ours, ordinary) = (folder.path().join("ours"), folder.path().join("ordinary"));
        write_atomically(&ours, false, |_| Ok(())).unwrap();
        File::create(&ordinary).unwrap();
        assert_eq!(
            fs::metadata(ours).unwrap().mode(),
            fs::metadata(ordinary).unwrap().mode()
        );
    }
}
