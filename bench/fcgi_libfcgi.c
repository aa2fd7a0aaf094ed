/* fcgi_libfcgi.c - a FastCGI responder that serves files, as one is written with libfcgi.
 *
 *   fcgi_libfcgi SOCKET DIR
 *
 * A thread serves one connection at a time, and a front server keeps its connections, so there are some threads: see
 * examples/threaded.c of libfcgi. The file is read in blocks and written to the response, for which libfcgi has nothing
 * else. The entity tag and its comparison are as little as one can do.
 */
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fcgiapp.h>

enum { THREADS = 32, BLOCK = 65536 };

static int listener, dir;

static void serve(FCGX_Request *r, char *block)
{
    const char *path = FCGX_GetParam("SCRIPT_NAME", r->envp), *tag = FCGX_GetParam("HTTP_IF_NONE_MATCH", r->envp);
    struct stat st;
    char etag[64];
    int fd = path != NULL ? openat(dir, path + strspn(path, "/"), O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0 || fstat(fd, &st) < 0) {
        FCGX_PutS("Status: 404 Not Found\r\nContent-Length: 0\r\n\r\n", r->out);
        if (fd >= 0)
            close(fd);
        return;
    }
    snprintf(etag, sizeof etag, "\"%llx-%llx\"", (unsigned long long)st.st_mtime, (unsigned long long)st.st_size);
    if (tag != NULL && strcmp(tag, etag) == 0) {
        FCGX_FPrintF(r->out, "Status: 304 Not Modified\r\nETag: %s\r\n\r\n", etag);
    } else {
        FCGX_FPrintF(r->out, "Status: 200 OK\r\nETag: %s\r\nContent-Length: %lld\r\n\r\n", etag, (long long)st.st_size);
        for (ssize_t n; (n = read(fd, block, BLOCK)) > 0;)
            FCGX_PutStr(block, (int)n, r->out);
    }
    close(fd);
}

static void *thread(void *unused)
{
    FCGX_Request r;
    char *block = malloc(BLOCK);
    (void)unused;
    if (block == NULL || FCGX_InitRequest(&r, listener, 0) != 0)
        exit(1);
    while (FCGX_Accept_r(&r) == 0) {
        serve(&r, block);
        FCGX_Finish_r(&r);
    }
    exit(1);
}

int main(int argc, char **argv)
{
    pthread_t threads[THREADS];
    if (argc != 3 || (dir = open(argv[2], O_RDONLY | O_DIRECTORY)) < 0 || FCGX_Init() != 0
        || (listener = FCGX_OpenSocket(argv[1], 128)) < 0) {
        perror("usage: fcgi_libfcgi SOCKET DIR");
        return 1;
    }
    for (int i = 0; i < THREADS; i++)
        if (pthread_create(&threads[i], NULL, thread, NULL) != 0)
            return 1;
    pthread_join(threads[0], NULL);
    return 1;
}
