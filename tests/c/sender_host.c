/* The background sender within its host: its thread and the host's threads, signals, fork, and the end of it all. */
#include "flight.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define N(array) (sizeof array / sizeof *array)
#define LARGE (3 * 1024 * 1024 + 17)
/* More than all buffers between two sockets hold. */
#define HUGE_FILE (16 << 20)

/* Under Valgrind: fewer rounds of the same. */
static int slow;

/* ---- on_ready ---- */

struct ready {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    sendgate_sender *sender;
    pthread_t host;
    int calls;
    int taken;
    int to_submit; /* that many more from inside */
    int on_host; /* calls on a thread that is the host's */
    struct ask ask;
    sendgate_status stop;
};

static void ready_init(struct ready *ready)
{
    memset(ready, 0, sizeof *ready);
    MUST(pthread_mutex_init(&ready->lock, NULL) == 0 && pthread_cond_init(&ready->changed, NULL) == 0);
    ready->host = pthread_self();
}

/* Waits until *number is at least `want`. */
static void ready_wait(struct ready *ready, const int *number, int want)
{
    struct timespec end;
    MUST(clock_gettime(CLOCK_REALTIME, &end) == 0);
    end.tv_sec += 60;
    MUST(pthread_mutex_lock(&ready->lock) == 0);
    while (*number < want)
        MUST(pthread_cond_timedwait(&ready->changed, &ready->lock, &end) == 0);
    MUST(pthread_mutex_unlock(&ready->lock) == 0);
}

/* Takes all that is there, and submits the next. */
static void take_inside(void *user)
{
    struct ready *ready = user;
    sendgate_completion done[3];
    size_t n = 0;
    MUST(pthread_mutex_lock(&ready->lock) == 0);
    ready->calls++;
    if (pthread_equal(pthread_self(), ready->host))
        ready->on_host++;
    while (sendgate_sender_take(ready->sender, done, 3, &n) == SENDGATE_OK) {
        for (size_t i = 0; i < n; i++)
            ready->taken += done[i].status == SENDGATE_OK;
    }
    if (ready->to_submit > 0) {
        ready->to_submit--;
        MUST(sendgate_sender_submit(ready->sender, &ready->ask.exchange, &ready->ask.sink, NULL, NULL, NULL) ==
             SENDGATE_PENDING);
    }
    MUST(pthread_cond_broadcast(&ready->changed) == 0);
    MUST(pthread_mutex_unlock(&ready->lock) == 0);
}

/* Takes nothing, but tries what must not be done here. */
static void end_inside(void *user)
{
    struct ready *ready = user;
    MUST(pthread_mutex_lock(&ready->lock) == 0);
    ready->stop = sendgate_sender_stop(ready->sender, 0);
    sendgate_sender_free(ready->sender);
    ready->calls++;
    MUST(pthread_cond_broadcast(&ready->changed) == 0);
    MUST(pthread_mutex_unlock(&ready->lock) == 0);
}

static void on_ready(void)
{
    struct ready ready;
    int sockets[2];
    sendgate_sender_options options = {.size = sizeof options, .on_ready = take_inside, .user = &ready};

    check_case("on_ready: called each time that there is something and there was nothing");
    ready_init(&ready);
    make_pair(UNIX_PAIR, 1, sockets);
    ask_memory(&ready.ask, "hello", 5, sockets[0]);
    /* Locked, so that it can't be called before it knows its sender. */
    MUST(pthread_mutex_lock(&ready.lock) == 0);
    ready.sender = sender_make(&options);
    MUST(pthread_mutex_unlock(&ready.lock) == 0);
    for (int i = 0; i < (slow ? 50 : 1000); i++) {
        CHECK_STATUS(sendgate_sender_submit(ready.sender, &ready.ask.exchange, &ready.ask.sink, NULL, NULL, NULL),
                     SENDGATE_PENDING);
        ready_wait(&ready, &ready.taken, i + 1);
        peer_drain(sockets[1]);
    }
    CHECK(ready.calls >= ready.taken);
    CHECK_INT(ready.on_host, 0);
    check_sender_empty(ready.sender);

    check_case("on_ready: submits the next one");
    MUST(pthread_mutex_lock(&ready.lock) == 0);
    ready.taken = 0;
    ready.to_submit = 99;
    MUST(pthread_mutex_unlock(&ready.lock) == 0);
    CHECK_STATUS(sendgate_sender_submit(ready.sender, &ready.ask.exchange, &ready.ask.sink, NULL, NULL, NULL),
                 SENDGATE_PENDING);
    ready_wait(&ready, &ready.taken, 100);
    check_sender_empty(ready.sender);
    sendgate_sender_free(ready.sender);
    peer_drain(sockets[1]);

    check_case("stop and free inside on_ready");
    ready_init(&ready);
    ask_memory(&ready.ask, "hello", 5, sockets[0]);
    options.on_ready = end_inside;
    MUST(pthread_mutex_lock(&ready.lock) == 0);
    ready.sender = sender_make(&options);
    MUST(pthread_mutex_unlock(&ready.lock) == 0);
    CHECK_STATUS(sendgate_sender_submit(ready.sender, &ready.ask.exchange, &ready.ask.sink, NULL, NULL, NULL),
                 SENDGATE_PENDING);
    ready_wait(&ready, &ready.calls, 1);
    CHECK_STATUS(ready.stop, SENDGATE_ERR_BUSY);
    sendgate_completion done;
    sender_next(ready.sender, &done);
    CHECK_STATUS(done.status, SENDGATE_OK);
    sendgate_sender_free(ready.sender);
    close(sockets[0]);
    close(sockets[1]);
}

/* ---- The end ---- */

static void *stop_main(void *arg)
{
    struct ready *ready = arg;
    ready->stop = sendgate_sender_stop(ready->sender, 60000);
    return NULL;
}

static void *free_main(void *arg)
{
    struct ready *ready = arg;
    ready->stop = sendgate_sender_stop(ready->sender, 0);
    sendgate_sender_free(ready->sender);
    return NULL;
}

static void stopping(void)
{
    struct flight flight, stalled;
    struct ready ready;
    pthread_t thread;

    check_case("stop with nothing in flight");
    int before = open_fds();
    sendgate_sender *sender = sender_make(NULL);
    CHECK_STATUS(sendgate_sender_stop(sender, 0), SENDGATE_OK);
    CHECK_STATUS(sendgate_sender_stop(sender, 1000), SENDGATE_OK);
    check_sender_empty(sender);
    CHECK_STATUS(sendgate_sender_cancel(sender, 1), SENDGATE_OK);
    sendgate_sender_free(sender);
    sendgate_sender_free(NULL);
    CHECK_INT(open_fds(), before);

    for (int kind = UNIX_PAIR; kind <= TCP_PAIR; kind++) {
        check_case("stop waits for what is in flight, %s", kind_name((enum kind)kind));
        sender = sender_make(NULL);
        flight_open(&flight, (enum kind)kind, 0);
        flight_send(&flight, sender, file_new("answer", HUGE_FILE));
        UNTIL(socket_is_full(flight.sock));
        flight_read(&flight);
        int64_t start = now_ms();
        CHECK_STATUS(sendgate_sender_stop(sender, 60000), SENDGATE_OK);
        CHECK(now_ms() - start < 30000); /* and no longer */
        flight_collect(sender, 1);
        flight_check_whole(&flight, HUGE_FILE);
        check_sender_empty(sender);
        for (uint32_t flags = 0; flags <= SENDGATE_SINK_TRY_NOW; flags += SENDGATE_SINK_TRY_NOW) {
            check_case("submit after stop, %s, flags %u", kind_name((enum kind)kind), (unsigned)flags);
            flight_open(&flight, (enum kind)kind, 1);
            ask_memory(&flight.ask, "hello", 5, flight.sock);
            flight.ask.sink.flags = flags;
            flight_check_refused(&flight, sender, SENDGATE_ERR_CANCELLED, 0);
            flight_join(&flight);
            CHECK_INT(flight.peer.len, 0);
            flight_free(&flight);
        }
        sendgate_sender_free(sender);

        check_case("stop cuts short what is stalled, %s", kind_name((enum kind)kind));
        sender = sender_make(NULL);
        flight_open(&stalled, (enum kind)kind, 0);
        flight_open(&flight, (enum kind)kind, 0);
        flight_read(&flight);
        flight_send(&stalled, sender, file_new("answer", HUGE_FILE));
        flight_send(&flight, sender, file_new("other", LARGE));
        start = now_ms();
        /* Time enough for the other one. */
        CHECK_STATUS(sendgate_sender_stop(sender, 1000), SENDGATE_ERR_TIMEOUT);
        int64_t took = now_ms() - start;
        CHECK(took >= 1000 && took < 20000);
        CHECK_STATUS(sendgate_sender_stop(sender, 1000), SENDGATE_ERR_TIMEOUT);
        CHECK(flight_collect(sender, 2) == &stalled);
        check_completion(&stalled.done, SENDGATE_ERR_CANCELLED, 200, SENDGATE_CONN_BROKEN);
        CHECK(!(fcntl(stalled.sock, F_GETFL) & O_NONBLOCK));
        flight_check_whole(&flight, LARGE);
        flight_join(&stalled);
        flight_check(&stalled, 0);
        flight_free(&stalled);
        check_sender_empty(sender);
        sendgate_sender_free(sender);

        check_case("a stop that waits is cut short by one that does not, %s", kind_name((enum kind)kind));
        ready.sender = sender_make(NULL);
        flight_open(&stalled, (enum kind)kind, 1);
        flight_send(&stalled, ready.sender, file_new("answer", HUGE_FILE));
        MUST(pthread_create(&thread, NULL, stop_main, &ready) == 0);
        /* Whichever comes first. */
        CHECK_STATUS(sendgate_sender_stop(ready.sender, 0), SENDGATE_ERR_TIMEOUT);
        MUST(pthread_join(thread, NULL) == 0);
        CHECK_STATUS(ready.stop, SENDGATE_ERR_TIMEOUT);
        flight_collect(ready.sender, 1);
        CHECK_STATUS(stalled.done.status, SENDGATE_ERR_CANCELLED);
        flight_join(&stalled);
        flight_check(&stalled, 0);
        flight_free(&stalled);
        sendgate_sender_free(ready.sender);

        check_case("free with one in flight, and one that was not taken, %s", kind_name((enum kind)kind));
        before = open_fds();
        sender = sender_make(NULL);
        flight_open(&stalled, (enum kind)kind, 0);
        flight_open(&flight, (enum kind)kind, 1);
        flight_read(&flight);
        flight_send(&stalled, sender, file_new("answer", HUGE_FILE));
        flight_send(&flight, sender, file_new("other", LARGE));
        struct pollfd news = {sendgate_sender_fd(sender), POLLIN, 0};
        MUST(poll(&news, 1, 60000) == 1);
        sendgate_sender_free(sender);
        CHECK(!(fcntl(stalled.sock, F_GETFL) & O_NONBLOCK));
        flight_join(&stalled);
        flight_join(&flight);
        CHECK(stalled.peer.len > 0 && stalled.peer.len < HUGE_FILE);
        CHECK(flight.peer.len > LARGE);
        flight_free(&stalled);
        flight_free(&flight);
        CHECK_INT(open_fds(), before);
    }

    /* glibc gives a thread that comes later the stack, and the pthread_t, of one that has ended. */
    check_case("stop and free on a thread that came after the sender's");
    before = open_fds();
    pthread_attr_t attributes;
    MUST(pthread_attr_init(&attributes) == 0);
    ready.sender = sender_make(NULL);
    CHECK_STATUS(sendgate_sender_stop(ready.sender, 0), SENDGATE_OK);
    MUST(pthread_attr_setstacksize(&attributes, 2 << 20) == 0);
    MUST(pthread_create(&thread, &attributes, free_main, &ready) == 0);
    MUST(pthread_join(thread, NULL) == 0);
    CHECK_STATUS(ready.stop, SENDGATE_OK);
    CHECK_INT(open_fds(), before);
    MUST(pthread_attr_destroy(&attributes) == 0);
}

/* ---- Signals ---- */

static pthread_t main_thread;
static volatile sig_atomic_t on_main, elsewhere;

static void on_signal(int signal)
{
    (void)signal;
    if (pthread_equal(pthread_self(), main_thread))
        on_main++;
    else
        elsewhere++;
}

static int is_fault(int signal)
{
    return signal == SIGSEGV || signal == SIGBUS || signal == SIGFPE || signal == SIGILL || signal == SIGTRAP ||
           signal == SIGABRT || signal == SIGSYS;
}

/* Signals that a program may handle and block: 32 and 33 are the C library's own, and 64 is Valgrind's. */
static int is_usual(int signal)
{
    return signal != SIGKILL && signal != SIGSTOP && signal != 32 && signal != 33 && signal != 64 && !is_fault(signal);
}

/* The signals that the sender's threads block, as the kernel has it. Returns how many such threads there are. */
static int sender_masks(unsigned long long *mask)
{
    char path[300], line[200];
    int found = 0;
    DIR *tasks = opendir("/proc/self/task");
    MUST(tasks != NULL);
    for (struct dirent *task; (task = readdir(tasks)) != NULL;) {
        snprintf(path, sizeof path, "/proc/self/task/%s/status", task->d_name);
        FILE *status = task->d_name[0] == '.' ? NULL : fopen(path, "r");
        if (status == NULL)
            continue;
        int is_sender = 0;
        while (fgets(line, sizeof line, status) != NULL) {
            if (strcmp(line, "Name:\tsendgate\n") == 0)
                is_sender = 1;
            if (is_sender && strncmp(line, "SigBlk:\t", 8) == 0) {
                *mask = strtoull(line + 8, NULL, 16);
                found++;
            }
        }
        fclose(status);
    }
    closedir(tasks);
    return found;
}

static void signals(void)
{
    struct sigaction before[65], after, action;
    sigset_t mask, mask_after, all, pending;
    main_thread = pthread_self();

    check_case("neither the caller's mask nor a disposition is changed");
    sigemptyset(&mask);
    sigaddset(&mask, SIGUSR2);
    MUST(pthread_sigmask(SIG_SETMASK, &mask, NULL) == 0);
    for (int i = 1; i <= 64; i++)
        if (is_usual(i) || is_fault(i))
            MUST(sigaction(i, NULL, &before[i]) == 0);
    sendgate_sender *sender = sender_make(NULL);
    check_sender_works(sender);
    sendgate_sender_free(sender);
    sender = sender_make(NULL);
    MUST(pthread_sigmask(SIG_SETMASK, NULL, &mask_after) == 0);
    for (int i = 1; i <= 64; i++) {
        if (!is_usual(i) && !is_fault(i))
            continue;
        CHECK_INT(sigismember(&mask_after, i), i == SIGUSR2);
        MUST(sigaction(i, NULL, &after) == 0);
        CHECK(after.sa_handler == before[i].sa_handler && after.sa_flags == before[i].sa_flags);
    }
    sigemptyset(&mask);
    MUST(pthread_sigmask(SIG_SETMASK, &mask, NULL) == 0);

    check_case("the sender's thread blocks all signals but those of faults");
    unsigned long long blocked = 0, usual = 0, faults = 0;
    for (int i = 1; i <= 64; i++) {
        usual |= (unsigned long long)is_usual(i) << (i - 1);
        faults |= (unsigned long long)is_fault(i) << (i - 1);
    }
    check_sender_works(sender); /* so that it has begun */
    /* A thread that was joined may be there for a moment; and Valgrind blocks all signals of one that doesn't wait. */
    UNTIL(sender_masks(&blocked) == 1 && (blocked & (usual | faults)) == usual);

    /* With a response in flight, and this thread, the only other one, blocking it: nobody takes the signal. */
    struct flight flight;
    flight_open(&flight, TCP_PAIR, 1);
    flight_send(&flight, sender, file_new("answer", HUGE_FILE));
    UNTIL(socket_is_full(flight.sock));
    sigfillset(&all);
    memset(&action, 0, sizeof action);
    action.sa_handler = on_signal;
    for (int i = 1; i <= 64; i++) {
        /* SIGALRM: the watchdog's, but not for a moment. SIGCONT is delivered in any case. */
        if (!is_usual(i) || i == SIGCONT)
            continue;
        check_case("signal %d", i);
        on_main = elsewhere = 0;
        MUST(sigaction(i, &action, NULL) == 0);
        MUST(pthread_sigmask(SIG_SETMASK, &all, NULL) == 0);
        MUST(kill(getpid(), i) == 0);
        /* It goes on sending meanwhile. */
        char buf[4096];
        CHECK(peer_take(flight.peer.fd, buf, sizeof buf) > 0);
        MUST(sigpending(&pending) == 0);
        CHECK_INT(sigismember(&pending, i), 1);
        CHECK_INT(on_main + elsewhere, 0);
        MUST(pthread_sigmask(SIG_SETMASK, &mask, NULL) == 0);
        CHECK_INT(on_main, 1);
        CHECK_INT(elsewhere, 0);
        MUST(sigaction(i, &before[i], NULL) == 0);
    }
    check_begin(); /* the watchdog again */
    flight_hang_up(&flight);
    close(flight.peer.fd);
    flight_collect(sender, 1);
    CHECK_STATUS(flight.done.status, SENDGATE_ERR_PEER_CLOSED);

    check_case("a timer's signals without SA_RESTART");
    timer_t timer;
    struct sigevent how;
    struct itimerspec often = {{0, 200000}, {0, 200000}};
    memset(&how, 0, sizeof how);
    how.sigev_notify = SIGEV_SIGNAL;
    how.sigev_signo = SIGUSR1;
    on_main = elsewhere = 0;
    MUST(sigaction(SIGUSR1, &action, NULL) == 0);
    MUST(timer_create(CLOCK_MONOTONIC, &how, &timer) == 0 && timer_settime(timer, 0, &often, NULL) == 0);
    for (int round = 0; round < 20 || on_main < 20; round++) {
        /* Neither the peer's thread nor what else the test does is to be interrupted, only the sender's calls. */
        MUST(pthread_sigmask(SIG_SETMASK, &all, NULL) == 0);
        flight_open(&flight, round % 2 ? TCP_PAIR : UNIX_PAIR, round % 4 > 1);
        flight_read(&flight);
        int file = file_new("answer", LARGE);
        MUST(pthread_sigmask(SIG_SETMASK, &mask, NULL) == 0);
        flight_send(&flight, sender, file);
        flight_collect(sender, 1);
        MUST(pthread_sigmask(SIG_SETMASK, &all, NULL) == 0);
        flight_check_whole(&flight, LARGE);
        MUST(pthread_sigmask(SIG_SETMASK, &mask, NULL) == 0);
    }
    MUST(timer_delete(timer) == 0);
    CHECK_INT(elsewhere, 0);
    MUST(sigaction(SIGUSR1, &before[SIGUSR1], NULL) == 0);
    sendgate_sender_free(sender);
}

/* ---- fork ---- */

/* ASan's allocator is not made for it: in a child it may be locked for good by a thread that is not there. */
#if defined(__SANITIZE_ADDRESS__)
#define CHILD_MAY_ALLOCATE 0
#else
#define CHILD_MAY_ALLOCATE 1
#endif

/* The parent's side of fork, or 0 in the child. *result is where child_tell and child_wait do their part. */
static pid_t child_begin(int result[2])
{
    fflush(stdout);
    MUST(pipe(result) == 0);
    pid_t child = fork();
    MUST(child >= 0);
    if (child == 0)
        alarm(60); /* a hang is the end of it */
    return child;
}

/* The end of the child. It becomes another program, because at an exit Valgrind would look for leaks, and take for lost what
 * only the threads knew that are not there. */
static void child_tell(const int result[2], int step)
{
    char byte = (char)step;
    MUST(write(result[1], &byte, 1) == 1);
    execlp("true", "true", (char *)NULL);
    _exit(0);
}

/* What the child told; -1: it died without a word. */
static int child_wait(pid_t child, const int result[2])
{
    char byte = -1;
    close(result[1]);
    while (read(result[0], &byte, 1) < 0)
        MUST(errno == EINTR);
    close(result[0]);
    while (waitpid(child, NULL, 0) < 0)
        MUST(errno == EINTR);
    return byte;
}

/* In the child: every call says so, and none hangs. The step that failed; 0: none. */
static int calls_in_child(sendgate_sender *sender, struct ask *ask)
{
    sendgate_completion done;
    uint64_t id = 42;
    size_t n = 42;
    if (sendgate_sender_fd(sender) != -1)
        return 1;
    if (sendgate_sender_submit(sender, &ask->exchange, &ask->sink, NULL, &id, &ask->result) != SENDGATE_ERR_FORKED)
        return 2;
    if (id != 42 || ask->result.status != SENDGATE_ERR_FORKED || ask->result.connection != SENDGATE_CONN_UNTOUCHED)
        return 3;
    ask->sink.flags = SENDGATE_SINK_TRY_NOW;
    if (sendgate_sender_submit(sender, &ask->exchange, &ask->sink, NULL, NULL, NULL) != SENDGATE_ERR_FORKED)
        return 4;
    if (sendgate_sender_take(sender, &done, 1, &n) != SENDGATE_ERR_FORKED || n != 42)
        return 5;
    if (sendgate_sender_cancel(sender, 1) != SENDGATE_ERR_FORKED)
        return 6;
    if (sendgate_sender_stop(sender, 1000) != SENDGATE_ERR_FORKED)
        return 7;
    return 0;
}

/* In the child: a sender of its own works. The step that failed; 0: none. */
static int sender_in_child(void)
{
    sendgate_sender *own = NULL;
    sendgate_completion done;
    size_t n = 0;
    int sockets[2];
    char buf[64];
    struct ask ask;
    if (sendgate_sender_new(NULL, &own, NULL) != SENDGATE_OK)
        return 11;
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) != 0)
        return 12;
    ask_memory(&ask, "hello", 5, sockets[0]);
    ask.exchange.head = SENDGATE_HEAD_NONE;
    if (sendgate_sender_submit(own, &ask.exchange, &ask.sink, NULL, NULL, NULL) != SENDGATE_PENDING)
        return 13;
    if (recv(sockets[1], buf, sizeof buf, 0) != 5)
        return 14;
    if (sendgate_sender_stop(own, 60000) != SENDGATE_OK)
        return 15;
    if (sendgate_sender_take(own, &done, 1, &n) != SENDGATE_OK || done.status != SENDGATE_OK)
        return 16;
    sendgate_sender_free(own);
    return 0;
}

struct busy {
    sendgate_sender *sender;
    int sockets[2];
    int end;
    unsigned long rounds;
};

/* Calls that take and give back the sender's lock, without a pause. */
static void *busy_main(void *arg)
{
    struct busy *busy = arg;
    struct ask ask;
    ask_memory(&ask, "hello", 5, busy->sockets[0]);
    while (!__atomic_load_n(&busy->end, __ATOMIC_ACQUIRE)) {
        sendgate_completion done[4];
        size_t n;
        sendgate_status status = sendgate_sender_submit(busy->sender, &ask.exchange, &ask.sink, NULL, NULL, NULL);
        MUST(status == SENDGATE_PENDING || status == SENDGATE_ERR_BUSY);
        status = sendgate_sender_take(busy->sender, done, 4, &n);
        MUST(status == SENDGATE_OK || status == SENDGATE_EMPTY);
        peer_drain(busy->sockets[1]);
        busy->rounds++;
    }
    return NULL;
}

static void forking(void)
{
    struct flight flight;
    struct ask ask;
    sendgate_sender *sender;
    int sockets[2], result[2];
    pid_t child;
    make_pair(UNIX_PAIR, 1, sockets);
    for (int kind = UNIX_PAIR; kind <= TCP_PAIR; kind++) {
        check_case("a child, with a response in flight, %s", kind_name((enum kind)kind));
        sender = sender_make(NULL);
        flight_open(&flight, (enum kind)kind, 0);
        flight_send(&flight, sender, file_new("answer", HUGE_FILE));
        UNTIL(socket_is_full(flight.sock));
        ask_memory(&ask, "hello", 5, sockets[0]);
        child = child_begin(result);
        if (child == 0) {
            int step = calls_in_child(sender, &ask);
            sendgate_sender_free(sender);
            if (step == 0)
                step = sender_in_child();
            child_tell(result, step);
        }
        CHECK_INT(child_wait(child, result), 0);
        CHECK_INT(peer_drain(sockets[1]), 0);
        CHECK(fcntl(flight.sock, F_GETFL) & O_NONBLOCK);
        flight_read(&flight);
        flight_collect(sender, 1);
        flight_check_whole(&flight, HUGE_FILE);
        check_sender_works(sender);
        sendgate_sender_free(sender);
    }

    check_case("a child that has let go of the sender, and lives on");
    sender = sender_make(NULL);
    int ends[2], ready[2];
    char byte;
    flight_open(&flight, TCP_PAIR, 1);
    flight_send(&flight, sender, file_new("answer", HUGE_FILE));
    UNTIL(socket_is_full(flight.sock));
    MUST(pipe(ends) == 0 && pipe(ready) == 0);
    child = child_begin(result);
    if (child == 0) {
        close(ends[1]);
        sendgate_sender_free(sender);
        MUST(write(ready[1], "x", 1) == 1);
        child_tell(result, (int)read(ends[0], &byte, 1));
    }
    MUST(read(ready[0], &byte, 1) == 1);
    flight_read(&flight);
    flight_collect(sender, 1);
    check_sender_works(sender);
    close(ends[1]);
    CHECK_INT(child_wait(child, result), 0);
    /* Only now the last descriptor of the connection is closed. */
    flight_check_whole(&flight, HUGE_FILE);
    close(ends[0]);
    close(ready[0]);
    close(ready[1]);

    check_case("a child after stop: numbers that were the sender's are somebody else's");
    CHECK_STATUS(sendgate_sender_stop(sender, 0), SENDGATE_OK);
    int others[64], n = 0;
    do
        MUST((others[n] = open("/dev/null", O_RDONLY | O_CLOEXEC)) >= 0);
    while (++n < 64);
    child = child_begin(result);
    if (child == 0) {
        int closed = 0;
        sendgate_sender_free(sender);
        for (int i = 0; i < n; i++)
            closed += fcntl(others[i], F_GETFD) < 0;
        child_tell(result, closed);
    }
    CHECK_INT(child_wait(child, result), 0);
    while (n > 0)
        close(others[--n]);
    sendgate_sender_free(sender);

    check_case("0, 1 and 2 closed: none of them is used, or what the host prints would go to a client");
    child = child_begin(result);
    if (child == 0) {
        sender = sender_make(NULL);
        flight_open(&flight, UNIX_PAIR, 1);
        int file = file_new("answer", HUGE_FILE);
        ask_file(&flight.ask, file, flight.sock);
        for (int fd = 0; fd < 3; fd++)
            close(fd);
        int submitted = sendgate_sender_submit(sender, &flight.ask.exchange, &flight.ask.sink, NULL, NULL, NULL);
        child_tell(result, submitted != SENDGATE_PENDING || fcntl(0, F_GETFD) >= 0 || fcntl(1, F_GETFD) >= 0 ||
                               fcntl(2, F_GETFD) >= 0);
    }
    CHECK_INT(child_wait(child, result), 0);

    check_case("children while other threads are in the middle of a call");
    struct busy busy = {.sender = sender_make(NULL)};
    pthread_t thread;
    make_pair(UNIX_PAIR, 1, busy.sockets);
    MUST(pthread_create(&thread, NULL, busy_main, &busy) == 0);
    for (int i = 0; i < (slow ? 5 : 100); i++) {
        ask_memory(&ask, "hello", 5, sockets[0]);
        child = child_begin(result);
        if (child == 0) {
            int step = calls_in_child(busy.sender, &ask);
            if (CHILD_MAY_ALLOCATE) {
                sendgate_sender_free(busy.sender);
                if (step == 0)
                    step = sender_in_child();
            }
            child_tell(result, step);
        }
        CHECK_INT(child_wait(child, result), 0);
    }
    __atomic_store_n(&busy.end, 1, __ATOMIC_RELEASE);
    MUST(pthread_join(thread, NULL) == 0);
    CHECK(busy.rounds > 0);
    sendgate_sender_free(busy.sender);
    close(busy.sockets[0]);
    close(busy.sockets[1]);
    close(sockets[0]);
    close(sockets[1]);
}

int main(void)
{
    check_begin();
    slow = getenv("SENDGATE_TEST_SLOW") != NULL;
    /* A SIGPIPE that the library let through would be the end of this. */
    MUST(signal(SIGPIPE, SIG_DFL) != SIG_ERR);
    static void (*const tests[])(void) = {
        on_ready, stopping, signals, forking,
    };
    for (size_t i = 0; i < N(tests); i++) {
        int before = open_fds();
        tests[i]();
        CHECK_INT(open_fds(), before);
    }
    return check_end();
}
