//! Work on worker threads whose results one thread takes in order: encoding to an output.
//!
//! The calling thread consumes while the workers produce, in buffers that go round: the memory is
//! bounded and no thread waits for a batch to end. Results never depend on the number of threads.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};

use crate::error::{Error, Result};
use crate::options::Threads;
use crate::parallel;

/// Buffers for each worker: one at work, one on its way to the consumer, one on its way back.
const BUFFERS_PER_WORKER: usize = 3;

/// Calls `produce` for every number below `count`, and `consume` with the results in order.
///
/// `produce` fills a buffer that may hold an earlier result. One thread means the calling thread.
///
/// # Errors
/// The first error of `consume`, which ends the work.
pub(crate) fn for_each<B: Default + Send>(
    threads: Threads,
    count: usize,
    produce: impl Fn(usize, &mut B) + Sync,
    mut consume: impl FnMut(usize, &mut B) -> Result<()>,
) -> Result<()> {
    let workers = parallel::thread_count(threads)?.min(count);
    // Waiting inside a worker of a pool could keep the pool from the work waited for.
    if workers <= 1 || rayon::current_thread_index().is_some() {
        let mut buffer = B::default();
        return (0..count).try_for_each(|number| {
            produce(number, &mut buffer);
            consume(number, &mut buffer)
        });
    }
    let next = AtomicUsize::new(0);
    let (to_consumer, results) = mpsc::channel::<(usize, B)>();
    let (to_workers, free) = mpsc::channel::<B>();
    let free = Mutex::new(free);
    parallel::pool(parallel::thread_count(threads)?)?.in_place_scope(|scope| {
        for _ in 0..workers {
            let to_consumer = to_consumer.clone();
            let (next, free, produce) = (&next, &free, &produce);
            scope.spawn(move |_| {
                // A buffer first, then the number: whoever has the lowest number can go on.
                let take = || free.lock().unwrap_or_else(PoisonError::into_inner).recv();
                while let Ok(mut buffer) = take() {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        break;
                    }
                    produce(number, &mut buffer);
                    if to_consumer.send((number, buffer)).is_err() {
                        break;
                    }
                }
            });
        }
        drop(to_consumer);
        for _ in 0..workers * BUFFERS_PER_WORKER {
            // The workers hold the receiver for as long as they run.
            let _ = to_workers.send(B::default());
        }
        let mut early = BTreeMap::new();
        let result = (0..count).try_for_each(|number| {
            let mut buffer = loop {
                if let Some(buffer) = early.remove(&number) {
                    break buffer;
                }
                let (arrived, buffer) = results
                    .recv()
                    .map_err(|_| Error::Io(std::io::Error::other("a worker thread has died")))?;
                early.insert(arrived, buffer);
            };
            let result = consume(number, &mut buffer);
            let _ = to_workers.send(buffer);
            result
        });
        // Workers that wait for a buffer, or find nobody to send to, end.
        drop((to_workers, results));
        result
    })
}
