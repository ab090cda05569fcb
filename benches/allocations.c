/* Counts the bytes that a process has allocated: benches/damage.py preloads it.
 *
 *     cc -O2 -shared -fPIC -o allocations.so allocations.c -ldl
 *
 * `allocations_reset` makes the peak what is live now, `allocations_peak` says how far above that it has
 * been since. Anonymous maps made by other than the allocator
 * count too, and are never subtracted: what is unmapped cannot be told.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <malloc.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/mman.h>

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);
extern void __libc_free(void *);

static atomic_long live, peak, start;

static void add(long bytes)
{
    long now = atomic_fetch_add(&live, bytes) + bytes;
    long most = atomic_load(&peak);
    while (now > most && !atomic_compare_exchange_weak(&peak, &most, now)) {
    }
}

static void *counted(void *pointer)
{
    if (pointer)
        add((long)malloc_usable_size(pointer));
    return pointer;
}

void allocations_reset(void)
{
    long now = atomic_load(&live);
    atomic_store(&start, now);
    atomic_store(&peak, now);
}

long allocations_peak(void)
{
    return atomic_load(&peak) - atomic_load(&start);
}

void *malloc(size_t size)
{
    return counted(__libc_malloc(size));
}

void *calloc(size_t count, size_t size)
{
    return counted(__libc_calloc(count, size));
}

void *realloc(void *pointer, size_t size)
{
    long before = pointer ? (long)malloc_usable_size(pointer) : 0;
    void *moved = __libc_realloc(pointer, size);
    if (moved)
        add((long)malloc_usable_size(moved) - before);
    else if (size == 0)
        add(-before);
    return moved;
}

void *memalign(size_t alignment, size_t size)
{
    return counted(__libc_memalign(alignment, size));
}

void *aligned_alloc(size_t alignment, size_t size)
{
    return counted(__libc_memalign(alignment, size));
}

int posix_memalign(void **out, size_t alignment, size_t size)
{
    void *pointer = counted(__libc_memalign(alignment, size));
    if (!pointer)
        return ENOMEM;
    *out = pointer;
    return 0;
}

void free(void *pointer)
{
    if (pointer)
        add(-(long)malloc_usable_size(pointer));
    __libc_free(pointer);
}

void *mmap(void *address, size_t length, int protection, int flags, int file, off_t offset)
{
    static void *(*next)(void *, size_t, int, int, int, off_t);
    if (!next)
        next = (void *(*)(void *, size_t, int, int, int, off_t))dlsym(RTLD_NEXT, "mmap");
    void *mapped = next(address, length, protection, flags, file, offset);
    /* What is only reserved takes no memory. */
    if (mapped != MAP_FAILED && (flags & MAP_ANONYMOUS) && protection != PROT_NONE)
        add((long)length);
    return mapped;
}
