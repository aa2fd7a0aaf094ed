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

#endif
