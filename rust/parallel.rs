//! Chunks over threads. Order and content of the results never depend on the number of threads.
//!
//! One thread means the calling thread. Pools are kept per thread count and per process: after a
//! fork the child makes its own, because threads do not survive a fork.

use std::num::NonZeroUsize;
use std::sync::{Arc, LazyLock, Mutex};

use rayon::ThreadPool;
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::options::Threads;

/// Environment variable with the number of threads for [`Threads::auto`].
const THREADS_VARIABLE: &str = "NEUZIP_NUM_THREADS";

/// Cores this process may use. Asking takes longer than decoding a small tensor.
static CORES: LazyLock<usize> =
    LazyLock::new(|| std::thread::available_parallelism().map_or(1, NonZeroUsize::get));

/// The number of threads to use.
pub(crate) fn thread_count(threads: Threads) -> Result<usize> {
    if let Some(count) = threads.requested() {
        return Ok(count.get());
    }
    match std::env::var(THREADS_VARIABLE) {
        Ok(text) if !text.trim().is_empty() => text
            .trim()
            .parse::<NonZeroUsize>()
            .map(NonZeroUsize::get)
            .map_err(|_| {
                Error::InvalidArgument(format!(
                    "{THREADS_VARIABLE} must be a positive number, not {text:?}"
                ))
            }),
        _ => Ok(*CORES),
    }
}

struct KeptPool {
    process: u32,
    threads: usize,
    pool: Arc<ThreadPool>,
}

static POOLS: Mutex<Vec<KeptPool>> = Mutex::new(Vec::new());

/// A pool of `threads`, kept for the next call unless another thread is just looking for one.
pub(crate) fn pool(threads: usize) -> Result<Arc<ThreadPool>> {
    let build = || {
        rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|index| format!("neuzip-{index}"))
            .build()
            .map(Arc::new)
            .map_err(|error| Error::Io(std::io::Error::other(error)))
    };
    // A fork may have happened while another thread held the lock: never wait for it.
    let Ok(mut pools) = POOLS.try_lock() else {
        return build();
    };
    let process = std::process::id();
    // The pools of a parent process have no threads here, and dropping one would wait for them.
    if let Some(kept) = pools
        .iter()
        .find(|kept| kept.process == process && kept.threads == threads)
    {
        return Ok(kept.pool.clone());
    }
    let pool = build()?;
    pools.push(KeptPool {
        process,
        threads,
        pool: pool.clone(),
    });
    Ok(pool)
}

/// `work` for every index below `count`, results in order.
pub(crate) fn map<T: Send>(
    threads: Threads,
    count: usize,
    work: impl Fn(usize) -> T + Sync + Send,
) -> Result<Vec<T>> {
    let threads = thread_count(threads)?;
    if threads == 1 || count <= 1 {
        return Ok((0..count).map(work).collect());
    }
    Ok(pool(threads)?.install(|| (0..count).into_par_iter().map(work).collect()))
}

/// `work` on every item; stops early on an error.
pub(crate) fn try_for_each<T: Send>(
    threads: Threads,
    items: Vec<T>,
    work: impl Fn(T) -> Result<()> + Sync + Send,
) -> Result<()> {
    let threads = thread_count(threads)?;
    if threads == 1 || items.len() <= 1 {
        return items.into_iter().try_for_each(work);
    }
    pool(threads)?.install(|| items.into_par_iter().try_for_each(work))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_does_not_depend_on_threads() {
        for threads in [1, 2, 5] {
            let squares = map(Threads::new(threads), 1000, |i| i * i).unwrap();
            assert!(
                squares
                    .iter()
                    .enumerate()
                    .all(|(i, &square)| square == i * i)
            );
        }
    }

    #[test]
    fn errors_come_out() {
        for threads in [1, 3] {
            let result = try_for_each(Threads::new(threads), (0..50).collect(), |i| {
                if i == 40 {
                    Err(Error::corrupt("forty"))
                } else {
                    Ok(())
                }
            });
            assert!(matches!(result, Err(Error::Corrupt(_))));
        }
    }
}
