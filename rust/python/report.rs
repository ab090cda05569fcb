//! Work without the GIL that visits the interpreter now and then, and the exceptions it ends with.

use std::io;
use std::time::{Duration, Instant};

use pyo3::exceptions::PyOSError;
use pyo3::prelude::*;

use super::errors::to_py;
use crate::container::mapped::{PathError, path_of};
use crate::error::{Error, Result};
use crate::files::Progress;

/// Time between two visits to the interpreter: short enough for Ctrl-C and progress bars to feel
/// prompt, long enough to cost nothing.
const REPORT_INTERVAL: Duration = Duration::from_millis(100);

/// The exception for an error of a file operation.
pub(super) fn raise(error: Error) -> PyErr {
    match &error {
        Error::Io(source) => path_of(source).map(os_error),
        _ => None,
    }
    .unwrap_or_else(|| to_py(error))
}

/// `OSError(errno, text, filename)`, from which Python makes the right subclass.
fn os_error(error: &PathError) -> PyErr {
    let PathError { path, source } = error;
    let errno = source.raw_os_error().or(match source.kind() {
        io::ErrorKind::NotFound => Some(2),
        io::ErrorKind::PermissionDenied => Some(13),
        io::ErrorKind::AlreadyExists => Some(17),
        io::ErrorKind::NotADirectory => Some(20),
        io::ErrorKind::IsADirectory => Some(21),
        io::ErrorKind::InvalidInput => Some(22),
        io::ErrorKind::StorageFull => Some(28),
        io::ErrorKind::ReadOnlyFilesystem => Some(30),
        _ => None,
    });
    match errno {
        Some(errno) => {
            // The interpreter's own words, without the number that Rust adds to them.
            let text = Python::attach(|py| {
                let text = py.import("os")?.call_method1("strerror", (errno,))?;
                text.extract::<String>()
            });
            let own_words = source.raw_os_error().is_none() && source.get_ref().is_some();
            let text = text
                .ok()
                .filter(|_| !own_words)
                .unwrap_or_else(|| source.to_string());
            PyOSError::new_err((errno, text, path.as_os_str().to_owned()))
        }
        None => PyOSError::new_err(error.to_string()),
    }
}

/// Visits the interpreter now and then during work without the GIL.
struct Reporter {
    callback: Option<Py<PyAny>>,
    last: Option<Instant>,
    raised: Option<PyErr>,
}

impl Reporter {
    fn report(&mut self, done: u64, total: u64) -> Result<()> {
        let recent = self
            .last
            .is_some_and(|last| last.elapsed() < REPORT_INTERVAL);
        if recent && done < total {
            return Ok(());
        }
        self.last = Some(Instant::now());
        let visited = Python::attach(|py| {
            py.check_signals()?;
            if let Some(callback) = &self.callback {
                callback.call1(py, (done, total))?;
            }
            Ok(())
        });
        visited.map_err(|raised| {
            self.raised = Some(raised);
            Error::Interrupted
        })
    }
}

/// Runs `work` without the GIL; an exception of the callback or a signal handler ends it.
pub(super) fn run<T: Send>(
    py: Python<'_>,
    callback: Option<Py<PyAny>>,
    work: impl FnOnce(&mut Progress<'_>) -> Result<T> + Send,
) -> PyResult<T> {
    let mut reporter = Reporter {
        callback,
        last: None,
        raised: None,
    };
    let result = py.detach(|| work(&mut |done, total| reporter.report(done, total)));
    match reporter.raised {
        Some(raised) => Err(raised),
        None => result.map_err(raise),
    }
}
