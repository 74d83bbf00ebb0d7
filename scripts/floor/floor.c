/* A minimal prefork HTTP server, as a lower bound for measurements: epoll, N processes, no library, no timeouts, and
 * the same answer as `GET /` of `prefork serve`. The difference to other servers is the cost of their features.
 *
 *   cc -O2 -o floor floor.c
 *   floor WORKERS reuseport|shared [no-shutdown]
 *
 * reuseport    a SO_REUSEPORT socket for each worker, opened and kept by the parent
 * shared       one socket for all, with EPOLLEXCLUSIVE and one accept for each wake-up
 * no-shutdown  closes connections without a shutdown; by default, a connection is shut down and closed, as in
 *              prefork after a request with `connection: close`
 *
 * The parent prints the address, replaces dead workers, and ends with its workers when its standard input is
 * closed, or on SIGTERM or SIGINT. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MOST_WORKERS 1024
#define MOST_FDS 16384
#define HEAD_MAX 2048
#define ACCEPTS 16

struct conn {
    int have;    /* bytes of an incomplete head */
    int watched; /* in the epoll */
    char buf[HEAD_MAX];
};

static struct conn conns[MOST_FDS];
static int epfd, no_shutdown;

static void die(const char *what) {
    fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* ---- a worker ---- */

/* Returns the answer, which is formatted once a second for each kind. */
static const char *answer(int close_after, int *length) {
    static char text[2][512];
    static int lengths[2];
    static time_t made[2];
    time_t now = time(NULL);
    if (made[close_after] != now) {
        char body[64], date[64];
        int n = snprintf(body, sizeof body, "Handled by PID %d\n", getpid());
        strftime(date, sizeof date, "%a, %d %b %Y %H:%M:%S GMT", gmtime(&now));
        lengths[close_after] = snprintf(text[close_after], sizeof text[0],
            "HTTP/1.1 200 OK\r\n%scontent-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\n"
            "date: %s\r\n\r\n%s", close_after ? "connection: close\r\n" : "", n, date, body);
        made[close_after] = now;
    }
    *length = lengths[close_after];
    return text[close_after];
}

/* Returns whether the client wants the connection closed after this request. */
static int wants_close(char *head, int length) {
    char *end = head + length, *line = memchr(head, '\n', length);
    int close_after = line && line - head > 9 && memmem(head, line - head, "HTTP/1.0", 8) != NULL;
    for (; line && line + 1 < end; line = memchr(line + 1, '\n', end - line - 1))
        if (end - line > 12 && strncasecmp(line + 1, "connection:", 11) == 0)
            close_after = strncasecmp(line + 12 + (line[12] == ' '), "close", 5) == 0;
    return close_after;
}

static void drop(int fd) {
    conns[fd].have = conns[fd].watched = 0;
    close(fd); /* also removes it from the epoll */
}

static void watch(int fd) {
    struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
    if (conns[fd].watched)
        return;
    conns[fd].watched = 1;
    if (epoll_ctl(epfd, EPOLL_CTL_ADD, fd, &e) != 0)
        drop(fd);
}

/* Sends answers. An answer is far smaller than the send buffer: if it does not fit, the client does not read. */
static int send_all(int fd, const char *text, int length) {
    if (length == 0 || send(fd, text, length, MSG_NOSIGNAL) == length)
        return 1;
    drop(fd);
    return 0;
}

/* Receives once, and answers each complete head; all of them with one send. */
static void turn(int fd) {
    static char answers[16384];
    int filled = 0;
    struct conn *c = &conns[fd];
    int n = recv(fd, c->buf + c->have, HEAD_MAX - c->have, 0), begin = 0;
    if (n < 0 && errno == EAGAIN) {
        watch(fd);
        return;
    }
    if (n <= 0) {
        drop(fd);
        return;
    }
    c->have += n;
    for (char *end; (end = memmem(c->buf + begin, c->have - begin, "\r\n\r\n", 4)) != NULL;) {
        int head = end + 4 - (c->buf + begin), length;
        int close_after = wants_close(c->buf + begin, head);
        const char *text = answer(close_after, &length);
        begin += head;
        if (filled + length > (int)sizeof answers) {
            if (!send_all(fd, answers, filled))
                return;
            filled = 0;
        }
        memcpy(answers + filled, text, length);
        filled += length;
        if (close_after) {
            if (!send_all(fd, answers, filled))
                return;
            if (!no_shutdown)
                shutdown(fd, SHUT_WR);
            drop(fd);
            return;
        }
    }
    if (!send_all(fd, answers, filled))
        return;
    c->have -= begin;
    memmove(c->buf, c->buf + begin, c->have);
    if (c->have == HEAD_MAX)
        drop(fd);
    else
        watch(fd);
}

static void work(int listener, int shared) {
    struct epoll_event events[64];
    struct epoll_event e = {.events = EPOLLIN | (shared ? EPOLLEXCLUSIVE : 0), .data.fd = listener};
    epfd = epoll_create1(EPOLL_CLOEXEC);
    if (epfd < 0 || epoll_ctl(epfd, EPOLL_CTL_ADD, listener, &e) != 0)
        die("epoll");
    for (;;) {
        int ready = epoll_wait(epfd, events, 64, -1);
        for (int i = 0; i < ready; i++) {
            if (events[i].data.fd != listener) {
                turn(events[i].data.fd);
                continue;
            }
            for (int k = 0; k < (shared ? 1 : ACCEPTS); k++) {
                int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
                if (fd < 0)
                    break;
                if (fd < MOST_FDS)
                    turn(fd);
                else
                    close(fd);
            }
        }
    }
}

/* ---- the parent ---- */

static int listen_on(struct sockaddr_in *addr) {
    int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    socklen_t size = sizeof *addr;
    if (fd < 0 || setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on) != 0 ||
        setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof on) != 0 ||
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on) != 0 ||
        bind(fd, (struct sockaddr *)addr, sizeof *addr) != 0 || listen(fd, 4096) != 0 ||
        getsockname(fd, (struct sockaddr *)addr, &size) != 0)
        die("listen");
    return fd;
}

static pid_t spawn(int listener, int shared, const sigset_t *signals) {
    pid_t parent = getpid(), pid = fork();
    if (pid < 0)
        die("fork");
    if (pid > 0)
        return pid;
    sigprocmask(SIG_UNBLOCK, signals, NULL);
    if (prctl(PR_SET_PDEATHSIG, SIGKILL) != 0 || getppid() != parent)
        _exit(1);
    work(listener, shared);
    _exit(0);
}

int main(int argc, char **argv) {
    int workers = argc > 2 ? atoi(argv[1]) : 0, shared = argc > 2 && strcmp(argv[2], "shared") == 0;
    int listeners[MOST_WORKERS];
    pid_t pids[MOST_WORKERS];
    struct sockaddr_in addr = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct rlimit files;
    sigset_t signals;
    if (workers < 1 || workers > MOST_WORKERS || (!shared && strcmp(argv[2], "reuseport") != 0)) {
        fprintf(stderr, "usage: floor 1..%d reuseport|shared [no-shutdown]\n", MOST_WORKERS);
        return 64;
    }
    no_shutdown = argc > 3 && strcmp(argv[3], "no-shutdown") == 0;
    if (getrlimit(RLIMIT_NOFILE, &files) == 0) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    sigemptyset(&signals);
    sigaddset(&signals, SIGCHLD);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigprocmask(SIG_BLOCK, &signals, NULL);
    int signal_fd = signalfd(-1, &signals, SFD_CLOEXEC);
    if (signal_fd < 0)
        die("signalfd");
    for (int i = 0; i < workers; i++)
        listeners[i] = shared && i > 0 ? listeners[0] : listen_on(&addr);
    for (int i = 0; i < workers; i++)
        pids[i] = spawn(listeners[i], shared, &signals);
    fprintf(stderr, "listening on http://127.0.0.1:%d\n", ntohs(addr.sin_port));

    struct pollfd waits[2] = {{.fd = signal_fd, .events = POLLIN}, {.fd = 0, .events = POLLIN}};
    for (;;) {
        struct signalfd_siginfo signal;
        char ignored[64];
        if (poll(waits, 2, -1) < 0)
            continue;
        if (waits[1].revents && read(0, ignored, sizeof ignored) <= 0)
            break;
        if (!(waits[0].revents & POLLIN))
            continue;
        if (read(signal_fd, &signal, sizeof signal) == sizeof signal && signal.ssi_signo != SIGCHLD)
            break;
        for (pid_t dead; (dead = waitpid(-1, NULL, WNOHANG)) > 0;)
            for (int i = 0; i < workers; i++)
                if (pids[i] == dead)
                    pids[i] = spawn(listeners[i], shared, &signals);
    }
    for (int i = 0; i < workers; i++)
        kill(pids[i], SIGKILL);
    while (wait(NULL) > 0) {
    }
    return 0;
}
