/* site.h - what the file servers here have in common: which file a request target names, and what is answered where
 * there is none. A server of your own has its routes for that; nothing here is part of libsendgate. */
#ifndef SITE_H
#define SITE_H

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <unistd.h>

#include <sendgate.h>

static inline sendgate_str site_str(const char *s)
{
    return (sendgate_str){s, strlen(s)};
}

static inline bool site_is(sendgate_str s, const char *word)
{
    return s.len == strlen(word) && memcmp(s.ptr, word, s.len) == 0;
}

/* The directory of a server that is started with two arguments, the second of them being that. Ends the program where
 * they are wrong. */
static inline int site_directory(int argc, char **argv, const char *usage)
{
    if (argc != 3) {
        fprintf(stderr, "%s\n", usage);
        exit(2);
    }
    int dir = open(argv[2], O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (dir < 0) {
        perror(argv[2]);
        exit(1);
    }
    return dir;
}

static inline const char *site_type(const char *path)
{
    static const char *const types[][2] = {
        {"css", "text/css"}, {"csv", "text/csv"}, {"gif", "image/gif"}, {"gz", "application/gzip"},
        {"html", "text/html"}, {"ico", "image/x-icon"}, {"jpeg", "image/jpeg"}, {"jpg", "image/jpeg"},
        {"js", "text/javascript"}, {"json", "application/json"}, {"md", "text/markdown"}, {"mp4", "video/mp4"},
        {"pdf", "application/pdf"}, {"png", "image/png"}, {"svg", "image/svg+xml"}, {"txt", "text/plain"},
        {"wasm", "application/wasm"}, {"webp", "image/webp"}, {"woff2", "font/woff2"}, {"xml", "application/xml"}};
    const char *name = strrchr(path, '/');
    const char *dot = strrchr(name != NULL ? name : path, '.');
    for (size_t i = 0; dot != NULL && i < sizeof types / sizeof types[0]; i++)
        if (strcasecmp(dot + 1, types[i][0]) == 0)
            return types[i][1];
    return "application/octet-stream";
}

static inline int site_hex(char c)
{
    if (c >= '0' && c <= '9')
        return c - '0';
    c |= 0x20;
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

/* The path that a request target names, relative and percent-decoded. The query is dropped, "/" at the end becomes
 * "/index.html". That it stays beneath the directory is sendgate_open's business.
 * Returns an HTTP status: 0, or 400 if the target is malformed, or 404 if no file can have that name. */
static inline unsigned site_path(sendgate_str target, char path[PATH_MAX])
{
    const char *p = target.ptr, *end = p + target.len;
    if (target.len == 0 || *p != '/') { /* absolute form: RFC 9112 3.2.2 */
        if (target.len <= 7 || strncasecmp(p, "http://", 7) != 0)
            return 400;
        for (p += 7; p < end && *p != '/' && *p != '?';)
            p++;
    }
    while (p < end && *p == '/')
        p++;
    size_t n = 0;
    static const char index[] = "index.html";
    while (p < end && *p != '?') {
        if (n >= PATH_MAX - sizeof index)
            return 404;
        char c = *p++;
        if (c == '%') {
            int high = end - p >= 2 ? site_hex(p[0]) : -1, low = high >= 0 ? site_hex(p[1]) : -1;
            if (low < 0)
                return 400;
            c = (char)(high * 16 + low);
            p += 2;
        }
        if (c == '\0')
            return 400;
        path[n++] = c;
    }
    path[n] = '\0';
    if (n == 0 || path[n - 1] == '/')
        memcpy(path + n, index, sizeof index);
    return 0;
}

/* Where a directory asked for without "/" at the end really is: "./NAME/?QUERY", relative to the target as it was
 * sent, so that no host and no scheme can be smuggled into it ("//evil.example/.." as a target). Absent if there is no
 * such place, because the target has that "/", or if it doesn't fit; it is at most 4 bytes longer than the target. */
static inline sendgate_str site_location(sendgate_str target, char *location, size_t cap)
{
    const char *query = memchr(target.ptr, '?', target.len);
    const char *end = target.ptr + target.len, *name_end = query != NULL ? query : end, *name = name_end;
    while (name > target.ptr && name[-1] != '/')
        name--;
    if (name == name_end || target.len + 4 >= cap)
        return (sendgate_str){NULL, 0};
    snprintf(location, cap, "./%.*s/%.*s", (int)(name_end - name), name, (int)(end - name_end), name_end);
    return site_str(location);
}

/* The HTTP status for a file that can't be opened, by errno. */
static inline unsigned site_status(int error)
{
    if (error == EACCES || error == EPERM)
        return 403;
    if (error == EMFILE || error == ENFILE || error == ENOMEM)
        return 503;
    /* The others: there is no such file (ENOENT, ENOTDIR, ...), or it is not beneath the directory (EXDEV, ELOOP). */
    return error == EIO ? 500 : 404;
}

/* What is sent where there is no file: the status as text. */
static inline sendgate_rep site_text(unsigned status)
{
    static const char *const texts[] = {
        "301 Moved Permanently\n", "400 Bad Request\n", "403 Forbidden\n", "404 Not Found\n",
        "405 Method Not Allowed\n", "431 Request Header Fields Too Large\n", "500 Internal Server Error\n",
        "503 Service Unavailable\n"};
    const char *text = "";
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++)
        if ((unsigned)atoi(texts[i]) == status)
            text = texts[i];
    return (sendgate_rep){.size = sizeof(sendgate_rep), .kind = SENDGATE_REP_MEMORY, .memory = text,
                          .length = strlen(text), .content_type = site_str("text/plain")};
}

/* The answer to one request, where the file is opened for it and closed behind it. Stays where it is, as ex points
 * into it. */
struct site_answer {
    sendgate_exchange ex;
    sendgate_rep rep;
    sendgate_header header; /* Allow, or Location */
    int fd;                 /* yours to close once it is sent; -1: there is none */
    char etag[SENDGATE_ETAG_MAX], path[PATH_MAX], location[PATH_MAX];
};

/* Fill it for a request, which it borrows. */
static inline void site_answer(struct site_answer *a, int dir, const sendgate_request *request, sendgate_str target)
{
    unsigned status = 0;
    int32_t error = 0;
    a->fd = -1;
    a->rep = (sendgate_rep){.size = sizeof a->rep};
    a->ex = (sendgate_exchange){.size = sizeof a->ex, .request = request, .rep = &a->rep, .headers = &a->header};
    if (!site_is(request->method, "GET") && !site_is(request->method, "HEAD")) {
        a->header = (sendgate_header){.field = {site_str("Allow"), site_str("GET, HEAD")}};
        a->ex.n_headers = 1;
        status = 405;
    } else if ((status = site_path(target, a->path)) == 0) {
        sendgate_status rc = sendgate_open(dir, a->path, 0, a->etag, sizeof a->etag, &a->fd, &a->rep, &error);
        if (rc == SENDGATE_OK) {
            a->rep.content_type = site_str(site_type(a->path));
            return;
        }
        /* A FIFO or device is nothing to download: as good as absent. */
        status = site_status(rc == SENDGATE_ERR_NOT_REGULAR ? ENOENT : error);
        sendgate_str location = site_location(target, a->location, sizeof a->location);
        if (error == EISDIR && location.ptr != NULL) {
            a->header = (sendgate_header){.field = {site_str("Location"), location}};
            a->ex.n_headers = 1;
            status = 301;
        }
    }
    a->rep = site_text(status);
    a->ex.http_status = status;
}

#endif
