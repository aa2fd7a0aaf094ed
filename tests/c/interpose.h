/* interpose.h - what a test needs that defines functions of libc itself, to count calls or let them fail, and calls the
 * real ones. Needs _GNU_SOURCE, -rdynamic and -ldl.
 */
#ifndef INTERPOSE_H
#define INTERPOSE_H

#include "check.h"

#include <dlfcn.h>
#include <stdarg.h>
#include <sys/syscall.h>
#include <sys/uio.h>

static void *next_function(const char *name)
{
    void *found = dlsym(RTLD_NEXT, name);
    MUST(found != NULL);
    return found;
}

/* Sets `function`, which is of a type of its own, to libc's (or the sanitizer's) of this name. */
#define FIND(function, name)                                                                                           \
    do {                                                                                                               \
        if ((function) == NULL)                                                                                        \
            *(void **)&(function) = next_function(name);                                                               \
    } while (0)

/* Defines libc's `function`, which returns `failure` if `fails`, and otherwise what the real one makes of `arguments`. */
#define INTERPOSE(result, function, parameters, fails, failure, arguments)                                             \
    result function parameters                                                                                         \
    {                                                                                                                  \
        static result(*real) parameters;                                                                               \
        FIND(real, #function);                                                                                         \
        return (fails) ? (failure) : real arguments;                                                                   \
    }

/* Defines syscall(), for the one call that the library makes by its number, so that `ours` stands in for preadv2. */
#define INTERPOSE_PREADV2(ours)                                                                                        \
    long syscall(long number, ...)                                                                                     \
    {                                                                                                                  \
        static long (*real)(long, ...);                                                                                \
        FIND(real, "syscall");                                                                                         \
        long a[6];                                                                                                     \
        va_list more;                                                                                                  \
        va_start(more, number);                                                                                        \
        for (int i = 0; i < 6; i++)                                                                                    \
            a[i] = va_arg(more, long);                                                                                 \
        va_end(more);                                                                                                  \
        if (number == SYS_preadv2)                                                                                     \
            return ours((int)a[0], (const struct iovec *)a[1], (int)a[2], (off_t)a[3], (int)a[5]);                     \
        return real(number, a[0], a[1], a[2], a[3], a[4], a[5]);                                                       \
    }

#endif
