/* interpose.h - what a test needs that defines functions of libc itself, to count calls or let them fail, and calls the
 * real ones. Needs _GNU_SOURCE, -rdynamic and -ldl.
 */
#ifndef INTERPOSE_H
#define INTERPOSE_H

#include "check.h"

#include <dlfcn.h>

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

#endif
