/* libfcgi.c - serves a folder to nginx, lighttpd or Apache, by libfcgi: that accepts connections and reads requests;
 * what is answered, and how it gets there, is sendgate's business.
 *
 *   libfcgi SOCKET DIR       serves DIR on the UNIX socket SOCKET
 *   libfcgi HOST:PORT DIR    ... or there
 *
 *   location / { fastcgi_pass unix:SOCKET; include fastcgi_params; }         # nginx
 *
 * sendgate writes the answer's records on the request's own socket, and the one that ends it: libfcgi's streams for
 * output stay unused, and FCGX_Free, unlike FCGX_Finish_r, throws them away without a word of its own.
 */
#include <pthread.h>
#include <signal.h>

#include <fcgiapp.h>

#include "../site.h"

enum {
    /* A thread waits for the next request on the connection that it has got, so that there have to be more threads than
     * front servers keep connections. */
    N_THREADS = 32,
    N_PARAMS = 256, /* of a request; further ones are not looked at */
    BACKLOG = 128,
};

static int dir, listener;

/* Which parameters there are. Returns their number. */
static size_t params_of(char **envp, sendgate_field params[N_PARAMS])
{
    size_t n = 0;
    for (; *envp != NULL && n < N_PARAMS; envp++) {
        const char *equals = strchr(*envp, '=');
        if (equals != NULL)
            params[n++] = (sendgate_field){{*envp, (size_t)(equals - *envp)}, site_str(equals + 1)};
    }
    return n;
}

/* Those that are the client's fields, HTTP_IF_RANGE, under the names that they had. In place: they are libfcgi's copies
 * for this request. */
static size_t fields_of(char **envp, sendgate_field fields[N_PARAMS])
{
    size_t n = 0;
    for (; *envp != NULL && n < N_PARAMS; envp++) {
        const char *equals = strchr(*envp, '=');
        if (equals == NULL || strncmp(*envp, "HTTP_", 5) != 0)
            continue;
        for (char *c = *envp; c < equals; c++)
            if (*c == '_')
                *c = '-';
        fields[n++] = (sendgate_field){{*envp + 5, (size_t)(equals - *envp) - 5}, site_str(equals + 1)};
    }
    return n;
}

/* Returns whether the connection is kept. */
static bool answer_request(FCGX_Request *fcgi)
{
    char content[4096], scratch[16384];
    sendgate_field params[N_PARAMS];
    sendgate_request request = {.size = sizeof request};
    sendgate_sink sink = {.size = sizeof sink, .fd = fcgi->ipcFd, .fcgi_request_id = (uint32_t)fcgi->requestId};
    sendgate_result result = {.size = sizeof result};
    struct site_answer answer;
    /* SCRIPT_NAME would be decoded, and is what the front server has made of it. */
    const char *target = FCGX_GetParam("REQUEST_URI", fcgi->envp);
    /* What is not read would be taken for the next request: at least the record that ends the content is there. */
    while (FCGX_GetStr(content, sizeof content, fcgi->in) > 0)
        ;
    if (FCGX_GetError(fcgi->in) != 0)
        return false;
    /* Method and version; then the fields, of which nginx may have passed several lines. */
    sendgate_request_from_params(&request, params, params_of(fcgi->envp, params));
    if (sendgate_request_from_fields(&request, params, fields_of(fcgi->envp, params), scratch, sizeof scratch, NULL)
        != SENDGATE_OK)
        return false;
    request.flags &= ~SENDGATE_REQUEST_HAS_BODY; /* it was read */
    site_answer(&answer, dir, &request, site_str(target != NULL ? target : ""));
    answer.ex.head = SENDGATE_HEAD_CGI;
    sink.flags = SENDGATE_SINK_SIGPIPE_IGNORED; /* FCGX_Init has seen to that */
    /* Without kept connections nginx notices at the answer's end what is missing of a file that has become shorter. */
    sink.flags |= fcgi->keepConnection ? SENDGATE_SINK_FCGI_KEEP : SENDGATE_SINK_FCGI_END_SHORT;
    sendgate_respond(&answer.ex, &sink, &result);
    if (answer.fd >= 0)
        close(answer.fd);
    return result.connection == SENDGATE_CONN_REUSABLE;
}

static void *serve(void *user)
{
    FCGX_Request fcgi;
    (void)user;
    FCGX_InitRequest(&fcgi, listener, 0);
    for (;;)
        if (FCGX_Accept_r(&fcgi) >= 0) {
            bool kept = answer_request(&fcgi);
            FCGX_Free(&fcgi, !kept);
        } else
            sleep(1); /* there are no more descriptors: until others have closed some */
    return NULL;
}

int main(int argc, char **argv)
{
    sigset_t ending;
    int number;
    dir = site_directory(argc, argv, "usage: libfcgi SOCKET|HOST:PORT DIR");
    /* In all threads, before there are any: this one waits for them. */
    sigemptyset(&ending);
    sigaddset(&ending, SIGTERM);
    sigaddset(&ending, SIGINT);
    pthread_sigmask(SIG_BLOCK, &ending, NULL);
    if (FCGX_Init() != 0 || (listener = FCGX_OpenSocket(argv[1], BACKLOG)) < 0) {
        perror("libfcgi: listen");
        return 1;
    }
    for (int i = 0; i < N_THREADS; i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, serve, NULL) != 0) {
            perror("libfcgi: threads");
            return 1;
        }
        pthread_detach(thread);
    }
    printf("listening on %s\n", argv[1]);
    fflush(stdout);
    sigwait(&ending, &number);
    return 0;
}
