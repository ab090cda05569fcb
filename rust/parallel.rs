//! Work over threads. Order and content of the results never depend on the number of threads.
//!
//! One thread means the calling thread, and of several it is one. Invariants:
//! 1. Pools are kept per thread count and per process: after a fork the child makes its own, because
//!    threads do not survive a fork, and no lock that another thread may have held is waited for.
//! 2. All callers that ask for the same number of threads share one pool, so that many threads which
//!    compress at once get no helpers of their own each. A call from inside a pool stays in it.
//! 3. What a caller hands over or takes is handled on the calling thread: callbacks of Python run
//!    where signals are delivered.

use std::collections::VecDeque;
use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, LazyLock, Mutex, MutexGuard, PoisonError, TryLockError, mpsc};

use rayon::ThreadPool;
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::headroom::{self, WORKER_BYTES};
use crate::options::Threads;

/// Environment variable with the number of threads for [`Threads::auto`].
const THREADS_VARIABLE: &str = "NEUZIP_NUM_THREADS";
/// How often a thread that finds the list of pools locked looks again. The lock is held for well
/// under a microsecond, so only a fork at the wrong moment can use them all up.
const LOCK_ATTEMPTS: usize = 1000;

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

/// Looks at the list of pools; `None` if a fork left it locked by a thread that is not there.
fn with_pools<R>(look: impl FnOnce(&mut Vec<KeptPool>) -> R) -> Option<R> {
    for _ in 0..LOCK_ATTEMPTS {
        match POOLS.try_lock() {
            Ok(mut pools) => return Some(look(&mut pools)),
            Err(TryLockError::Poisoned(pools)) => return Some(look(&mut pools.into_inner())),
            Err(TryLockError::WouldBlock) => std::thread::yield_now(),
        }
    }
    None
}

/// The pool of `threads` of this process.
fn pool(threads: usize) -> Result<Arc<ThreadPool>> {
    let process = std::process::id();
    // The pools of a parent process have no threads here, and dropping one would wait for them.
    let find = |pools: &[KeptPool]| {
        pools
            .iter()
            .find(|kept| kept.process == process && kept.threads == threads)
            .map(|kept| kept.pool.clone())
    };
    if let Some(Some(kept)) = with_pools(|pools| find(pools)) {
        return Ok(kept);
    }
    // Not under the lock: it takes long enough for a fork to happen meanwhile.
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|index| format!("neuzip-{index}"))
        .build()
        .map(Arc::new)
        .map_err(|error| Error::Io(std::io::Error::other(error)))?;
    let kept = with_pools(|pools| {
        find(pools).unwrap_or_else(|| {
            pools.push(KeptPool {
                process,
                threads,
                pool: pool.clone(),
            });
            pool.clone()
        })
    });
    Ok(kept.unwrap_or(pool))
}

/// `work` for every index below `count`, results in order.
pub(crate) fn map<T: Send>(
    threads: Threads,
    count: usize,
    work: impl Fn(usize) -> T + Sync + Send,
) -> Result<Vec<T>> {
    let mut results: Vec<Option<T>> = (0..count).map(|_| None).collect();
    let places = results.iter_mut().enumerate().collect();
    try_for_each(threads, places, |(index, place)| {
        *place = Some(work(index));
        Ok(())
    })?;
    Ok(results.into_iter().flatten().collect())
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
    headroom::check(threads.min(items.len()) * WORKER_BYTES)?;
    let pool = pool(threads - 1)?;
    if rayon::current_thread_index().is_some() {
        return items.into_par_iter().try_for_each(work);
    }
    let others = (threads - 1).min(items.len() - 1);
    let items = Mutex::new(items.into_iter());
    let failed = Mutex::new(Ok(()));
    // Not in the loop's head, which would keep the lock.
    let next = || unpoisoned(&items).next();
    let work_on = || {
        while let Some(item) = next() {
            if let Err(error) = work(item) {
                // No more is begun.
                unpoisoned(&items).by_ref().for_each(drop);
                let mut first = unpoisoned(&failed);
                if first.is_ok() {
                    *first = Err(error);
                }
            }
        }
    };
    pool.in_place_scope(|scope| {
        for _ in 0..others {
            scope.spawn(|_| work_on());
        }
        work_on();
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// Locks what nobody panics over.
fn unpoisoned<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How much work may be under way, or done and not yet taken, at once.
///
/// Items have weights, such as the bytes they will produce. An item that is heavier than the limit is
/// worked on alone.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    /// Weight per thread.
    pub(crate) per_thread: usize,
    /// Weight besides: what waits to be taken while all threads work.
    pub(crate) besides: usize,
}

/// Runs `work` on every item and gives the results to `take` in order, on the calling thread, while
/// other threads work on the next items. The calling thread is one of the threads that are counted:
/// while there is nothing to take it works too, so that it is woken up less often and stays on its core.
///
/// `items` gives each item with its weight and is called on the calling thread as well. A buffer `B`
/// is lent to `work`, shown to `take`, and used again; `free` has buffers to begin with, and gets them
/// back unless there is an error. The first error, in the order of the items,
/// ends it, whether it is one of `items`, `work` or `take`.
pub(crate) fn in_order<T: Send, B: Default + Send, R: Send>(
    threads: Threads,
    ahead: Ahead,
    free: &mut Vec<B>,
    items: impl Iterator<Item = Result<(usize, T)>>,
    work: impl Fn(T, &mut B) -> Result<R> + Sync,
    mut take: impl FnMut(R, &mut B) -> Result<()>,
) -> Result<()> {
    let threads = thread_count(threads)?;
    let mut items = items.peekable();
    let first = items.next();
    // A single item is not worth waking anybody for.
    let several = threads > 1 && items.peek().is_some();
    let items = first.into_iter().chain(items);
    if several {
        headroom::check(threads * WORKER_BYTES)?;
        let pool = pool(threads - 1)?;
        let limit = threads * ahead.per_thread + ahead.besides;
        if rayon::current_thread_index().is_some() {
            return in_groups(limit, items, &work, take);
        }
        return pool.in_place_scope(|scope| pipeline(scope, limit, free, items, &work, take));
    }
    let mut buffer = free.pop().unwrap_or_default();
    for item in items {
        let result = work(item?.1, &mut buffer)?;
        take(result, &mut buffer)?;
    }
    free.push(buffer);
    Ok(())
}

/// What a worker sends back: the number of the item, its result and its buffer. Nothing comes with the
/// number if the work panicked.
type Report<R, B> = (usize, Option<(Result<R>, B)>);

/// Reports when it is dropped, so that nobody waits for work that panicked.
struct Reporting<R, B> {
    number: usize,
    outcome: Option<(Result<R>, B)>,
    to: mpsc::Sender<Report<R, B>>,
}

impl<R, B> Reporting<R, B> {
    fn done(mut self, result: Result<R>, buffer: B) {
        self.outcome = Some((result, buffer));
    }
}

impl<R, B> Drop for Reporting<R, B> {
    fn drop(&mut self) {
        // Nobody listens after an error.
        drop(self.to.send((self.number, self.outcome.take())));
    }
}

/// An item that is under way or done.
struct Slot<R, B> {
    weight: usize,
    outcome: Option<(Result<R>, B)>,
}

/// The calling thread's part of [`in_order`].
fn pipeline<'scope, T: Send + 'scope, B: Default + Send + 'scope, R: Send + 'scope>(
    scope: &rayon::Scope<'scope>,
    limit: usize,
    free: &mut Vec<B>,
    mut items: impl Iterator<Item = Result<(usize, T)>>,
    work: &'scope (impl Fn(T, &mut B) -> Result<R> + Sync),
    mut take: impl FnMut(R, &mut B) -> Result<()>,
) -> Result<()> {
    let stopped = Arc::new(AtomicBool::new(false));
    let _guard = StopWhenLeft(stopped.clone());
    let (to, reports) = mpsc::channel::<Report<R, B>>();
    // Whoever comes first takes the next one: a thread of the pool, or this one.
    let waiting: Arc<Waiting<T, B>> = Arc::default();
    let mut slots: VecDeque<Slot<R, B>> = VecDeque::new();
    // Items whose results were taken, and the weight of those that are under way or wait for it.
    let (mut taken, mut load) = (0, 0);
    let mut next = items.next();
    loop {
        while let Some(item) = next.take() {
            let (weight, item) = match item {
                Ok(item) => item,
                Err(error) => {
                    let outcome = Some((Err(error), B::default()));
                    slots.push_back(Slot { weight: 0, outcome });
                    break;
                }
            };
            if load > 0 && load + weight > limit {
                next = Some(Ok((weight, item)));
                break;
            }
            let buffer = free.pop().unwrap_or_default();
            waiting.push((taken + slots.len(), item, buffer));
            let (stopped, waiting, to) = (stopped.clone(), waiting.clone(), to.clone());
            scope.spawn(move |_| {
                if !stopped.load(Relaxed)
                    && let Some((number, item, mut buffer)) = waiting.pop()
                {
                    let outcome = None;
                    let reporting = Reporting {
                        number,
                        outcome,
                        to,
                    };
                    let result = work(item, &mut buffer);
                    reporting.done(result, buffer);
                }
            });
            load += weight;
            slots.push_back(Slot {
                weight,
                outcome: None,
            });
            next = items.next();
        }
        match slots.pop_front() {
            None => return Ok(()),
            Some(Slot {
                weight,
                outcome: Some((result, mut buffer)),
            }) => {
                take(result?, &mut buffer)?;
                free.push(buffer);
                taken += 1;
                load -= weight;
            }
            Some(waited_for) => {
                slots.push_front(waited_for);
                let report = match reports.try_recv() {
                    Ok(report) => report,
                    Err(_) => match waiting.pop() {
                        Some((number, item, mut buffer)) => {
                            let result = work(item, &mut buffer);
                            (number, Some((result, buffer)))
                        }
                        // This thread holds a sender too, so the channel is open.
                        None => reports.recv().map_err(|_| Error::Interrupted)?,
                    },
                };
                let (number, outcome) = report;
                // Without an outcome it panicked: leaving the scope passes the panic on.
                slots[number - taken].outcome = Some(outcome.ok_or(Error::Interrupted)?);
            }
        }
    }
}

/// Items that nobody has begun, with their numbers and buffers.
struct Waiting<T, B>(Mutex<VecDeque<(usize, T, B)>>);

impl<T, B> Default for Waiting<T, B> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<T, B> Waiting<T, B> {
    fn push(&self, item: (usize, T, B)) {
        unpoisoned(&self.0).push_back(item);
    }

    fn pop(&self) -> Option<(usize, T, B)> {
        unpoisoned(&self.0).pop_front()
    }
}

/// Tells the items that nobody has begun that they are not wanted any more.
struct StopWhenLeft(Arc<AtomicBool>);

impl Drop for StopWhenLeft {
    fn drop(&mut self) {
        self.0.store(true, Relaxed);
    }
}

/// [`in_order`] on a thread of the pool, which must not wait: group by group, each in parallel.
fn in_groups<T: Send, B: Default + Send, R: Send>(
    limit: usize,
    items: impl Iterator<Item = Result<(usize, T)>>,
    work: &(impl Fn(T, &mut B) -> Result<R> + Sync),
    mut take: impl FnMut(R, &mut B) -> Result<()>,
) -> Result<()> {
    let mut items = items.peekable();
    while items.peek().is_some() {
        let (mut group, mut load, mut failed) = (Vec::new(), 0, None);
        while group.is_empty() || load < limit {
            match items.next() {
                None => break,
                Some(Ok((weight, item))) => {
                    load += weight;
                    group.push(item);
                }
                Some(Err(error)) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        let work_on = |item| {
            let mut buffer = B::default();
            (work(item, &mut buffer), buffer)
        };
        let results: Vec<_> = group.into_par_iter().map(work_on).collect();
        for (result, mut buffer) in results {
            take(result?, &mut buffer)?;
        }
        if let Some(error) = failed {
            return Err(error);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::time::Duration;

    use super::*;

    const AHEAD: Ahead = Ahead {
        per_thread: 1,
        besides: 2,
    };

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

    /// Squares of `0..count`, in order, by items that take their time.
    fn squares(threads: usize, count: usize, weight: usize) -> Vec<usize> {
        let mut taken = Vec::new();
        let caller = std::thread::current().id();
        let under_way = AtomicUsize::new(0);
        in_order(
            Threads::new(threads),
            AHEAD,
            &mut Vec::new(),
            (0..count).map(|i| Ok((weight, i))),
            |i, buffer: &mut Vec<usize>| {
                assert!(under_way.fetch_add(1, Relaxed) < threads);
                std::thread::sleep(Duration::from_micros((i * 7919 % 13 * 20) as u64));
                buffer.push(i * i);
                under_way.fetch_sub(1, Relaxed);
                Ok(i)
            },
            |i, buffer| {
                assert_eq!(std::thread::current().id(), caller);
                assert_eq!(buffer.pop(), Some(i * i));
                taken.push(i * i);
                Ok(())
            },
        )
        .unwrap();
        taken
    }

    #[test]
    fn in_order_keeps_the_order() {
        for threads in [1, 2, 5] {
            for count in [0, 1, 2, 300] {
                let expected: Vec<usize> = (0..count).map(|i| i * i).collect();
                // With weights above the limit, items are worked on one by one.
                assert_eq!(squares(threads, count, 1), expected);
                assert_eq!(
                    squares(threads, count.min(20), 100),
                    expected[..count.min(20)]
                );
            }
        }
    }

    #[test]
    fn in_order_gives_the_first_error_whoever_made_it() {
        // Who fails at which item; the earliest counts.
        let run = |threads: usize, by_items: usize, by_work: usize, by_take: usize| {
            let fail = |at: usize, here: usize, who: &str| {
                if at == here {
                    Err(Error::corrupt(format!("{who} {at}")))
                } else {
                    Ok(())
                }
            };
            let taken = AtomicUsize::new(0);
            let result = in_order(
                Threads::new(threads),
                AHEAD,
                &mut Vec::new(),
                (0..100).map(|i| fail(by_items, i, "items").map(|()| (1, i))),
                |i, (): &mut ()| fail(by_work, i, "work").map(|()| i),
                |i, ()| {
                    taken.fetch_add(1, Relaxed);
                    fail(by_take, i, "take")
                },
            );
            (result.unwrap_err().to_string(), taken.into_inner())
        };
        for threads in [1, 2, 5] {
            let (message, taken) = run(threads, 40, 30, 50);
            assert_eq!((message.as_str(), taken), ("corrupt data: work 30", 30));
            let (message, taken) = run(threads, 20, 30, 50);
            assert_eq!((message.as_str(), taken), ("corrupt data: items 20", 20));
            let (message, taken) = run(threads, 40, 30, 10);
            assert_eq!((message.as_str(), taken), ("corrupt data: take 10", 11));
        }
    }

    #[test]
    fn in_order_limits_what_is_under_way() {
        let (begun, threads) = (AtomicUsize::new(0), 3);
        let mut taken = 0;
        in_order(
            Threads::new(threads),
            AHEAD,
            &mut Vec::new(),
            (0..60).map(|i| Ok((1, i))),
            |_, (): &mut ()| Ok(begun.fetch_add(1, Relaxed)),
            |_, ()| {
                taken += 1;
                std::thread::sleep(Duration::from_micros(300));
                let limit = threads * AHEAD.per_thread + AHEAD.besides;
                assert!(begun.load(Relaxed) <= taken + limit);
                Ok(())
            },
        )
        .unwrap();
        assert_eq!(taken, 60);
    }

    #[test]
    fn in_order_inside_a_pool_stays_in_it() {
        for threads in [2, 3] {
            let sums = map(Threads::new(threads), 20, |i| {
                let mut sum = 0;
                in_order(
                    Threads::new(threads),
                    AHEAD,
                    &mut Vec::new(),
                    (0..=i).map(|j| Ok((1, j))),
                    |j, (): &mut ()| Ok(j),
                    |j, ()| {
                        sum = sum * 2 + j;
                        Ok(())
                    },
                )
                .unwrap();
                sum
            });
            let expected: Vec<usize> = (0..20)
                .map(|i| (0..=i).fold(0, |sum, j| sum * 2 + j))
                .collect();
            assert_eq!(sums.unwrap(), expected);
        }
    }

    #[test]
    fn in_order_passes_a_panic_on() {
        let panicked = std::panic::catch_unwind(|| {
            in_order(
                Threads::new(2),
                AHEAD,
                &mut Vec::new(),
                (0..50).map(|i| Ok((1, i))),
                |i, (): &mut ()| {
                    assert!(i != 25, "on purpose");
                    Ok(())
                },
                |(), ()| Ok(()),
            )
        });
        assert!(panicked.is_err());
        assert_eq!(squares(2, 10, 1).len(), 10);
    }

    #[test]
    fn callers_share_a_pool() {
        // A number of threads that no other test uses.
        let threads = 7;
        std::thread::scope(|scope| {
            for _ in 0..16 {
                scope.spawn(|| map(Threads::new(threads), 100, |i| i).unwrap());
            }
        });
        let kept = with_pools(|pools| {
            let process = std::process::id();
            // The calling thread is one of the seven.
            let ours = |kept: &&KeptPool| kept.threads == threads - 1 && kept.process == process;
            pools.iter().filter(ours).count()
        });
        assert_eq!(kept, Some(1));
    }
}
