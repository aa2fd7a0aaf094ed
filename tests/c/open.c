/* sendgate_open: what lies beneath the directory, and nothing else. */
#include "check.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

static int dir;
/* Without openat2(2) (before Linux 5.6, under Valgrind, in some sandboxes) the library walks the path itself,
 * and then neither follows links nor takes "..", wherever they lead. */
static int walks;

/* Opens path, and checks the answer; `sys_errno` 0: any. The descriptor, or -1. */
static int check_open(const char *path, uint32_t flags, sendgate_status want, int sys_errno)
{
    sendgate_rep rep;
    char etag[SENDGATE_ETAG_MAX];
    int32_t fd = -1, error = 0;
    check_case("open \"%.60s\", flags %u", path, (unsigned)flags);
    memset(&rep, 0, sizeof rep);
    rep.size = sizeof rep;
    int before = open_fds();
    int64_t start = now_ms();
    CHECK_STATUS(sendgate_open(dir, path, flags, etag, sizeof etag, &fd, &rep, &error), want);
    CHECK(now_ms() - start < 5000);
    if (want == SENDGATE_OK) {
        CHECK(fd >= 0);
        CHECK_INT(rep.fd, fd);
        CHECK(rep.etag.ptr == etag && rep.etag.len > 2);
        CHECK_INT(open_fds(), before + 1);
        CHECK(fcntl(fd, F_GETFD) & FD_CLOEXEC);
        return fd;
    }
    CHECK_INT(fd, -1);
    CHECK_INT(open_fds(), before);
    if (sys_errno != 0)
        CHECK_INT(error, sys_errno);
    /* The same without anything but the descriptor to write to. */
    CHECK_STATUS(sendgate_open(dir, path, flags, NULL, 0, &fd, NULL, NULL), want);
    CHECK_INT(fd, -1);
    return -1;
}

static void leads_out(const char *path)
{
    int32_t fd = -1, error = 0;
    check_case("open \"%.60s\", which leads out", path);
    CHECK_STATUS(sendgate_open(dir, path, 0, NULL, 0, &fd, NULL, &error), SENDGATE_ERR_IO);
    CHECK_INT(fd, -1);
    if (!CHECK(error == EXDEV || error == ELOOP))
        fprintf(stderr, "errno is %d\n", (int)error);
    if (fd >= 0)
        close(fd);
}

static void opens(const char *path, uint32_t flags)
{
    int fd = check_open(path, flags, SENDGATE_OK, 0);
    char content[10];
    CHECK(fd >= 0 && read(fd, content, 10) == 10 && is_pattern(content, 10, 0));
    if (fd >= 0)
        close(fd);
}

/* Links and ".." that stay inside. */
static void opens_or_not(const char *path)
{
    if (walks)
        leads_out(path);
    else
        opens(path, 0);
}

static void fields_of_rep(void)
{
    sendgate_rep rep, direct;
    char etag[SENDGATE_ETAG_MAX], other[SENDGATE_ETAG_MAX], expected[64];
    int32_t fd = -1;
    check_case("what sendgate_open tells of the file");
    memset(&rep, 0xff, sizeof rep);
    rep.size = sizeof rep;
    CHECK_STATUS(sendgate_open(dir, "file", 0, etag, sizeof etag, &fd, &rep, NULL), SENDGATE_OK);
    CHECK_INT(rep.length, 1000);
    CHECK_INT(rep.offset, 0);
    CHECK_INT(rep.mtime, 1600000000);
    CHECK_INT(rep.mtime_nsec, 123456789);
    CHECK_INT(rep.kind, SENDGATE_REP_FILE);
    CHECK_INT(rep.flags, SENDGATE_REP_HAS_MTIME | SENDGATE_REP_ETAG_FROM_MTIME);
    snprintf(expected, sizeof expected, "\"%llx-%x\"", 1600000000123456789ULL, 1000u);
    CHECK(rep.etag.len == strlen(expected) && memcmp(rep.etag.ptr, expected, rep.etag.len) == 0);
    memset(&direct, 0, sizeof direct);
    direct.size = sizeof direct;
    CHECK_STATUS(sendgate_rep_from_fd(&direct, fd, 0, other, sizeof other, NULL), SENDGATE_OK);
    CHECK(direct.etag.len == rep.etag.len && memcmp(direct.etag.ptr, rep.etag.ptr, rep.etag.len) == 0);

    /* The options change the entity tag, each in its own way, and the largest fits. */
    char tags[4][SENDGATE_ETAG_MAX];
    size_t lens[4];
    for (uint32_t flags = 0; flags < 4; flags++) {
        CHECK_STATUS(sendgate_rep_from_fd(&direct, fd, flags, tags[flags], SENDGATE_ETAG_MAX, NULL), SENDGATE_OK);
        lens[flags] = direct.etag.len;
        CHECK(direct.etag.len >= 2 && tags[flags][0] == '"' && tags[flags][lens[flags] - 1] == '"');
        for (uint32_t i = 0; i < flags; i++)
            CHECK(lens[i] != lens[flags] || memcmp(tags[i], tags[flags], lens[i]) != 0);
    }
    close(fd);
    check_case("sendgate_open with SENDGATE_ETAG_INODE");
    CHECK_STATUS(sendgate_open(dir, "file", SENDGATE_ETAG_INODE | SENDGATE_ETAG_CTIME | SENDGATE_OPEN_OUTSIDE, etag,
                               sizeof etag, &fd, &rep, NULL),
                 SENDGATE_OK);
    CHECK(rep.etag.len == lens[3] && memcmp(rep.etag.ptr, tags[3], lens[3]) == 0);
    close(fd);
}

static void unreadable(void)
{
    check_case("no permission");
    int fd = file_make("root/secret", 1000);
    close(fd);
    MUST(chmod("root/secret", 0) == 0);
    if (geteuid() == 0) {
        /* Root may read anything; as somebody else it must be EACCES, if there is a way to be. */
        if (seteuid(65534) != 0) {
            printf("skipped: no permission: root may read everything and can't become somebody else here\n");
            return;
        }
        /* Only if somebody else can reach the directory can the refusal be the file's own. */
        if (faccessat(dir, "file", R_OK, AT_EACCESS) != 0)
            printf("note: the test directory itself is closed to others\n");
        check_open("secret", 0, SENDGATE_ERR_IO, EACCES);
        MUST(seteuid(0) == 0);
    } else {
        check_open("secret", 0, SENDGATE_ERR_IO, EACCES);
    }
}

int main(void)
{
    check_begin();
    char absolute[4096], long_name[5000], path[5200];
    MUST(mkdir("root", 0777) == 0 && mkdir("root/sub", 0777) == 0);
    close(file_make("root/file", 1000));
    close(file_make("root/sub/inner", 1000));
    close(file_make("root/100%", 1000));
    close(file_make("root/\xc3\xa9\n", 1000));
    close(file_make("outside", 1000));
    MUST(getcwd(absolute, sizeof absolute) != NULL);
    snprintf(path, sizeof path, "%s/root/file", absolute);
    MUST(symlink("file", "root/inside") == 0);
    MUST(symlink("../file", "root/sub/up") == 0);
    MUST(symlink("../outside", "root/out") == 0);
    MUST(symlink("../../outside", "root/sub/out") == 0);
    MUST(symlink("..", "root/parent") == 0);
    MUST(symlink(path, "root/absolute") == 0);
    MUST(symlink("/etc/passwd", "root/passwd") == 0);
    MUST(symlink("loop", "root/loop") == 0);
    MUST(symlink("nowhere", "root/dangling") == 0);
    MUST(mkfifo("root/fifo", 0666) == 0);
    int before = open_fds();
    dir = open("root", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    MUST(dir >= 0);
    struct open_how {
        uint64_t flags, mode, resolve;
    } how = {O_RDONLY | O_CLOEXEC, 0, 0};
    long probe = syscall(SYS_openat2, dir, ".", &how, sizeof how);
    walks = probe < 0;
    if (walks)
        printf("note: no openat2 here: links and \"..\" must be refused wherever they lead\n");
    else
        close((int)probe);

    opens("file", 0);
    opens("./file", 0);
    opens("sub/inner", 0);
    opens("sub//inner", 0);
    opens("100%", 0);
    opens("\xc3\xa9\n", 0);
    opens_or_not("inside");
    opens_or_not("sub/up");
    opens_or_not("sub/../file");
    opens("file", SENDGATE_OPEN_OUTSIDE);
    opens("out", SENDGATE_OPEN_OUTSIDE);
    opens("sub/out", SENDGATE_OPEN_OUTSIDE);
    opens("absolute", SENDGATE_OPEN_OUTSIDE);

    leads_out("out");
    leads_out("sub/out");
    leads_out("parent/outside");
    leads_out("passwd");
    leads_out("absolute");
    leads_out("../outside");
    leads_out("..");
    leads_out("../root/file");
    leads_out("sub/../../outside");
    /* "path is relative": flags lift the ban on links, not this. */
    int32_t fd = -1;
    check_case("an absolute path");
    CHECK(sendgate_open(dir, path, 0, NULL, 0, &fd, NULL, NULL) < 0);
    CHECK_INT(fd, -1);
    check_case("an absolute path and \"..\", links allowed");
    CHECK(sendgate_open(dir, "../outside", SENDGATE_OPEN_OUTSIDE, NULL, 0, &fd, NULL, NULL) < 0);
    CHECK_INT(fd, -1);
    CHECK(sendgate_open(dir, path, SENDGATE_OPEN_OUTSIDE, NULL, 0, &fd, NULL, NULL) < 0);
    CHECK_INT(fd, -1);
    check_case("an empty path");
    CHECK(sendgate_open(dir, "", 0, NULL, 0, &fd, NULL, NULL) < 0);
    CHECK_INT(fd, -1);

    check_open("missing", 0, SENDGATE_ERR_IO, ENOENT);
    check_open("missing/file", 0, SENDGATE_ERR_IO, ENOENT);
    check_open("dangling", 0, SENDGATE_ERR_IO, walks ? ELOOP : ENOENT);
    check_open("loop", 0, SENDGATE_ERR_IO, ELOOP);
    check_open("file/", 0, SENDGATE_ERR_IO, ENOTDIR);
    check_open("file/x", 0, SENDGATE_ERR_IO, ENOTDIR);
    check_open("sub", 0, SENDGATE_ERR_NOT_REGULAR, EISDIR);
    check_open("sub/", 0, SENDGATE_ERR_NOT_REGULAR, EISDIR);
    check_open(".", 0, SENDGATE_ERR_NOT_REGULAR, EISDIR);
    check_open("fifo", 0, SENDGATE_ERR_NOT_REGULAR, 0);
    check_open("fifo", SENDGATE_OPEN_OUTSIDE, SENDGATE_ERR_NOT_REGULAR, 0);

    struct sockaddr_un address;
    memset(&address, 0, sizeof address);
    address.sun_family = AF_UNIX;
    strcpy(address.sun_path, "root/socket");
    int listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    MUST(listener >= 0 && bind(listener, (struct sockaddr *)&address, sizeof address) == 0);
    check_open("socket", 0, SENDGATE_ERR_IO, ENXIO);
    close(listener);

    memset(long_name, 'n', sizeof long_name);
    long_name[255] = '\0';
    snprintf(path, sizeof path, "root/%s", long_name);
    close(file_make(path, 1000));
    opens(long_name, 0);
    long_name[255] = 'n';
    long_name[256] = '\0';
    check_open(long_name, 0, SENDGATE_ERR_IO, ENAMETOOLONG);
    for (size_t i = 0; i < sizeof long_name - 1; i++)
        long_name[i] = i % 2 ? '/' : '.';
    memcpy(long_name + 4000, "file", 5);
    opens(long_name, 0);
    memset(long_name + 4004, '/', sizeof long_name - 4004);
    long_name[sizeof long_name - 1] = '\0';
    if (!walks) /* PATH_MAX is the kernel's limit */
        check_open(long_name, 0, SENDGATE_ERR_IO, ENAMETOOLONG);

    check_case("a directory descriptor that is none");
    int32_t error = 0;
    CHECK_STATUS(sendgate_open(-1, "file", 0, NULL, 0, &fd, NULL, NULL), SENDGATE_ERR_INVALID);
    CHECK_STATUS(sendgate_open(dir + 1000, "file", 0, NULL, 0, &fd, NULL, &error), SENDGATE_ERR_IO);
    CHECK_INT(error, EBADF);
    int other = open("root/file", O_RDONLY | O_CLOEXEC);
    CHECK_STATUS(sendgate_open(other, "file", 0, NULL, 0, &fd, NULL, &error), SENDGATE_ERR_IO);
    CHECK_INT(error, ENOTDIR);
    close(other);

    fields_of_rep();
    unreadable();
    close(dir);
    check_case("descriptors");
    CHECK_INT(open_fds(), before);
    return check_end();
}
