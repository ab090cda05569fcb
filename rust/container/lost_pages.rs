//! Maps of files that lose pages: what would end the process becomes zeros and an error.
//!
//! When another process truncates a mapped file, or the disk cannot read a page of it, touching that page
//! raises SIGBUS. The handler here knows the maps of this crate. It puts zero pages in place of what is
//! lost, notes that, and lets the reader go on, which reports the loss when it is done. Any other SIGBUS goes to
//! the handler that was there before. Invariants: the handler reads atomics and makes one system call; it
//! replaces pages only inside a map that is alive, which nobody writes to; the list of maps only grows, its
//! entries are used again, so that it may be walked at any moment and in a forked child.
//!
//! Windows refuses to truncate files that are mapped.
//!
//! Place in docs/format-files.md: none.

#![allow(unsafe_code, reason = "signals and replacing pages have no safe form")]

use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering::SeqCst};

/// Where a free entry begins, and one that is being filled.
const FREE: usize = 0;
const TAKEN: usize = 1;

/// An entry of the list: the addresses of a map.
struct Entry {
    begin: AtomicUsize,
    end: AtomicUsize,
    lost: AtomicBool,
    next: *const Entry,
}

/// The first entry.
static MAPS: AtomicPtr<Entry> = AtomicPtr::new(ptr::null_mut());
/// What SIGBUS did before; the box lives for ever, as the handler may be looking at it.
static PREVIOUS: AtomicPtr<libc::sigaction> = AtomicPtr::new(ptr::null_mut());
/// Whether a SIGBUS that is not ours has been passed on.
static PASSED_ON: AtomicBool = AtomicBool::new(false);

/// Watches over a map as long as it lives; it must go before the map does.
pub(super) struct Guard {
    entry: &'static Entry,
}

// SAFETY: `next` is never written after an entry is in the list, all else is atomic.
unsafe impl Sync for Entry {}

impl Guard {
    /// Watches over the mapped `bytes`.
    pub(super) fn new(bytes: &[u8]) -> Self {
        install();
        let entry = free_entry();
        entry.lost.store(false, SeqCst);
        entry.end.store(bytes.as_ptr_range().end as usize, SeqCst);
        entry.begin.store(bytes.as_ptr() as usize, SeqCst);
        Self { entry }
    }

    /// Whether a page was touched that was no longer there.
    pub(super) fn has_lost_pages(&self) -> bool {
        self.entry.lost.load(SeqCst)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.entry.begin.store(FREE, SeqCst);
    }
}

/// An entry for the caller alone.
fn free_entry() -> &'static Entry {
    for entry in entries() {
        let taken = entry.begin.compare_exchange(FREE, TAKEN, SeqCst, SeqCst);
        if taken.is_ok() {
            return entry;
        }
    }
    let mut new = Box::new(Entry {
        begin: AtomicUsize::new(TAKEN),
        end: AtomicUsize::new(0),
        lost: AtomicBool::new(false),
        next: ptr::null(),
    });
    loop {
        let first = MAPS.load(SeqCst);
        new.next = first;
        let raw = Box::into_raw(new);
        if MAPS.compare_exchange(first, raw, SeqCst, SeqCst).is_ok() {
            // SAFETY: entries in the list are never freed.
            return unsafe { &*raw };
        }
        // SAFETY: it did not get into the list, so it is still ours alone.
        new = unsafe { Box::from_raw(raw) };
    }
}

/// All entries.
fn entries() -> impl Iterator<Item = &'static Entry> {
    // SAFETY: entries in the list are never freed, and never change what is next.
    let first = unsafe { MAPS.load(SeqCst).as_ref() };
    std::iter::successors(first, |entry| {
        // SAFETY: as above.
        unsafe { entry.next.as_ref() }
    })
}

type Handler = unsafe extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void);

/// Makes sure that the handler is in place: other libraries may have taken it since.
fn install() {
    let ours = on_bus_error as Handler as libc::sighandler_t;
    // SAFETY: a `sigaction` of zeros is a valid one; the calls read and write it, and no memory else.
    // The handler keeps to what is allowed in one, see the invariants above. Two threads that come here
    // at once store and install the same.
    unsafe {
        let mut previous: libc::sigaction = std::mem::zeroed();
        if libc::sigaction(libc::SIGBUS, ptr::null(), &raw mut previous) != 0
            || previous.sa_sigaction == ours
        {
            return;
        }
        PREVIOUS.store(Box::into_raw(Box::new(previous)), SeqCst);
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = ours;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
        libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut());
    }
}

/// The handler.
unsafe extern "C" fn on_bus_error(
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // SAFETY: the system gives the handler a valid `info`; the address is there in what a fault raises.
    let (raised_by_fault, address) = unsafe {
        let code = (*info).si_code;
        let fault = code > 0 && code != libc::SI_USER;
        (fault, if fault { (*info).si_addr() as usize } else { 0 })
    };
    if raised_by_fault && replace_lost_pages(address) {
        return;
    }
    // SAFETY: the arguments are those that the handler was given.
    unsafe { pass_on(raised_by_fault, signal, info, context) };
}

/// Puts zeros in place of the rest of the map that `address` is in, if it is in one.
fn replace_lost_pages(address: usize) -> bool {
    for entry in entries() {
        let begin = entry.begin.load(SeqCst);
        let end = entry.end.load(SeqCst);
        // An entry that is given to another map meanwhile is not the one of the faulting reader.
        let is_steady = entry.begin.load(SeqCst) == begin;
        if begin > TAKEN && is_steady && (begin..end).contains(&address) {
            // SAFETY: `sysconf` only answers. The pages replaced are all inside a read-only map of this
            // crate, as maps take whole pages, and that map is borrowed by the reader that was
            // interrupted, so that it is not unmapped meanwhile. Readers bounds-check what they read,
            // whatever it is. What lies behind the lost page is lost too, or soon will be; one call for
            // all keeps the number of maps small.
            unsafe {
                let page_bytes = libc::sysconf(libc::_SC_PAGESIZE) as usize;
                let page = address / page_bytes * page_bytes;
                let replaced = libc::mmap(
                    page as *mut libc::c_void,
                    end - page,
                    libc::PROT_READ,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                    -1,
                    0,
                );
                if replaced == libc::MAP_FAILED {
                    return false;
                }
            }
            entry.lost.store(true, SeqCst);
            return true;
        }
    }
    false
}

/// Does what would have been done without this module.
///
/// # Safety
/// The arguments are those of a handler.
unsafe fn pass_on(
    raised_by_fault: bool,
    signal: libc::c_int,
    info: *mut libc::siginfo_t,
    context: *mut libc::c_void,
) {
    // A handler that was passed a fault may raise the signal anew to end the process.
    let is_again = PASSED_ON.swap(true, SeqCst) && !raised_by_fault;
    // SAFETY: a previous action is never freed, and its handler is called as the system would have.
    unsafe {
        let previous = PREVIOUS.load(SeqCst).as_ref();
        let handler = previous.map_or(libc::SIG_DFL, |it| it.sa_sigaction);
        if handler == libc::SIG_IGN && !raised_by_fault {
            return;
        }
        if is_again || handler == libc::SIG_DFL || handler == libc::SIG_IGN {
            // A fault is raised again by the instruction itself.
            libc::signal(signal, libc::SIG_DFL);
            if !raised_by_fault {
                libc::raise(signal);
            }
        } else if previous.is_some_and(|it| it.sa_flags & libc::SA_SIGINFO != 0) {
            let call: Handler = std::mem::transmute(handler);
            call(signal, info, context);
        } else {
            let call: unsafe extern "C" fn(libc::c_int) = std::mem::transmute(handler);
            call(signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_used_again() {
        let bytes = [0_u8; 4];
        let count = || entries().count();
        drop([Guard::new(&bytes), Guard::new(&bytes), Guard::new(&bytes)]);
        let before = count();
        for _ in 0..100 {
            let guard = Guard::new(&bytes);
            assert!(!guard.has_lost_pages());
        }
        // Other tests have maps meanwhile.
        assert!(count() < before + 50);
    }
}
