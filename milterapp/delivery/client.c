/*
 * The pipe client, compiled: what pipe(8) may run for each message in place of client.py, whose contract it keeps to
 * the letter. There is a second one because starting Python costs more than the whole delivery besides.
 *
 *     CLIENT [--socket=PATH | --virtual=PATH] SENDER RECIPIENT ORIGINAL QUEUE_ID CLIENT
 *
 * Must never: look into the message, or for an option after the first argument; hold anything but in buffers of a fixed
 * size; let a fault of ours look like anything but a temporary failure, or a message that pipe(8) did not finish like a
 * whole one.
 *
 * Exit statuses: 0 delivered, 69 rejected (`5.7.1 text`), 75 try again (`4.3.0 text`). packaging/client builds it. A
 * change of it is one of client.py too: tests/delivery/test_clients.py holds both to the same.
 */

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define SOCKET "/run/milterapp/monitor/socket"
#define SEALS (F_SEAL_SEAL | F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_WRITE)

enum { DELIVERED = 0, REJECTED = 69, AGAIN = 75 };
enum {
    DEADLINE = 600, /* seconds for all of it; milterapp_time_limit must lie well above */
    CHUNK = 65536,  /* what a pipe holds */
    LIMIT = 65536,  /* bytes of a datagram, as in wire.py */
    LINE = 1000,    /* bytes of the one line; pipe(8) reads 4096 */
    EXITING = 4,    /* PF_EXITING of the kernel's include/linux/sched.h, in field 9 of proc_pid_stat(5) */
    HIDDEN = 50,    /* milliseconds; what a process takes to die, where /proc does not tell (hidepid) */
};

static const char *const TAGS[] = {"sender", "recipient", "original", "queue_id", "client"};
enum { FIELDS = sizeof TAGS / sizeof *TAGS };

struct bytes {
    const char *at;
    size_t size;
};

/* Print head and text as one line, without anything that could end it or be more than pipe(8) reads; exit. */
static _Noreturn void end(int status, const char *head, const char *text, size_t size)
{
    char line[LINE + 1];
    size_t at = 0;

    for (; *head; head++)
        line[at++] = *head;
    for (; size && at < LINE; size--, text++)
        line[at++] = (unsigned char)*text >= 32 && *text != 127 ? *text : '?';
    line[at] = '\n';
    if (at && write(STDOUT_FILENO, line, at + 1) < 0)
        _exit(status); /* which says it too */
    _exit(status);
}

/* Have pipe(8) try again, and say why. */
__attribute__((format(printf, 1, 2))) static _Noreturn void again(const char *format, ...)
{
    char text[LINE];
    va_list arguments;

    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    end(AGAIN, "4.3.0 ", text, strlen(text));
}

/* A system call has failed, as Python says it. None is tried again: no handler returns, so none is interrupted. */
static _Noreturn void fault(void)
{
    again("milterapp-pipe: [Errno %d] %s", errno, strerror(errno));
}

static void stopped(int number)
{
    const char *why = number == SIGALRM ? "milterapp-pipe: no answer in time" : "milterapp-pipe: stopped";

    end(AGAIN, "4.3.0 ", why, strlen(why));
}

static void heed_signals(void)
{
    static const int stopping[] = {SIGALRM, SIGTERM, SIGINT, SIGHUP};
    struct sigaction action = {.sa_handler = stopped};

    sigfillset(&action.sa_mask); /* one of them is enough for one line */
    for (size_t i = 0; i < sizeof stopping / sizeof *stopping; i++)
        if (sigaction(stopping[i], &action, NULL))
            fault();
    signal(SIGPIPE, SIG_IGN); /* a reader that is gone, a file size limit: errors of the call, as in Python */
    signal(SIGXFSZ, SIG_IGN);
    alarm(DEADLINE);
}

/* Return whether /proc shows a process, and its flags. */
static bool flags_of(pid_t pid, unsigned long *flags)
{
    char path[32], text[4096];

    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t size = read(fd, text, sizeof text - 1);
    close(fd);
    text[size > 0 ? size : 0] = '\0';
    const char *name = strrchr(text, ')'); /* its end; the name may hold one itself */
    return name && sscanf(name + 1, "%*s %*s %*s %*s %*s %*s %lu", flags) == 1;
}

/*
 * Go on only while the parent lives, is not exiting, and still reads our output.
 *
 * When pipe(8) dies, its end of our standard input is closed before the kernel gives us another parent: getppid() alone
 * takes a truncated message for a whole one. The flag closes that gap; where /proc hides the process, a pause does.
 */
static void finished(pid_t parent)
{
    unsigned long flags = 0;
    struct pollfd output = {.fd = STDOUT_FILENO}; /* POLLERR alone: the reader of our output has closed it */

    if (!flags_of(parent, &flags))
        nanosleep(&(struct timespec){.tv_nsec = HIDDEN * 1000000L}, NULL);
    if (poll(&output, 1, 0) < 0)
        fault();
    if (parent <= 1 || flags & EXITING || output.revents & POLLERR || getppid() != parent)
        again("pipe(8) did not finish the message");
}

/* Return a memfd with everything that comes until end of file. */
static int receive(void)
{
    static char chunk[CHUNK];
    ssize_t got, put;
    int message = memfd_create("message", MFD_CLOEXEC | MFD_ALLOW_SEALING);

    if (message < 0)
        fault();
    while ((got = read(STDIN_FILENO, chunk, sizeof chunk)) > 0)
        for (ssize_t at = 0; at < got; at += put)
            if ((put = write(message, chunk + at, (size_t)(got - at))) < 0)
                fault();
    if (got < 0)
        fault();
    return message;
}

static int reach(const char *path)
{
    struct sockaddr_un monitor = {.sun_family = AF_UNIX};
    size_t size = strlen(path);
    int connection = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);

    if (connection < 0)
        fault();
    if (size >= sizeof monitor.sun_path)
        again("the monitor does not answer: AF_UNIX path too long");
    memcpy(monitor.sun_path, path, size);
    if (connect(connection, (struct sockaddr *)&monitor, (socklen_t)(offsetof(struct sockaddr_un, sun_path) + size)))
        again("the monitor does not answer: %s", strerror(errno));
    return connection;
}

/* Write the datagram DELIVER or VIRTUAL, as in wire.py; return its size. */
static size_t encode(char datagram[LIMIT + 1], const char *kind, char **values)
{
    size_t size = (size_t)snprintf(datagram, LIMIT + 1, "%s\n", kind);

    for (int i = 0; i < FIELDS; i++) {
        size_t at = size < LIMIT ? size : LIMIT; /* what does not fit is counted all the same */
        size += (size_t)snprintf(datagram + at, LIMIT + 1 - at, "%s:%zu:%s\n", TAGS[i], strlen(values[i]), values[i]);
    }
    if (size > LIMIT)
        again("milterapp-pipe: an envelope of %zu bytes, more than %d", size, LIMIT);
    return size;
}

static void hand_over(int connection, int message, char *datagram, size_t size)
{
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof message)];
    } rights = {.head = {.cmsg_len = CMSG_LEN(sizeof message), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS}};
    struct iovec part = {.iov_base = datagram, .iov_len = size};
    struct msghdr whole = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = &rights, .msg_controllen = sizeof rights.room};

    memcpy(CMSG_DATA(&rights.head), &message, sizeof message);
    if (sendmsg(connection, &whole, MSG_NOSIGNAL) < 0)
        fault();
}

/* Cut off what stands before the next `mark`, and the mark; false where there is none. */
static bool cut(struct bytes *rest, char mark, struct bytes *head)
{
    const char *found = memchr(rest->at, mark, rest->size);

    if (!found)
        return false;
    *head = (struct bytes){rest->at, (size_t)(found - rest->at)};
    rest->size -= head->size + 1;
    rest->at = found + 1;
    return true;
}

static bool begins(struct bytes value, const char *with)
{
    return value.size >= strlen(with) && !memcmp(value.at, with, strlen(with));
}

static bool is(struct bytes value, const char *word)
{
    return value.size == strlen(word) && begins(value, word);
}

/* Find status and text in the datagram ANSWER; false where it is none. Of a tag that is there twice the last counts. */
static bool decode(struct bytes rest, struct bytes *status, struct bytes *text)
{
    struct bytes kind, tag, digits, other;

    if (!cut(&rest, '\n', &kind) || !is(kind, "ANSWER"))
        return false;
    while (rest.size) {
        size_t size = 0;

        if (!cut(&rest, ':', &tag) || !cut(&rest, ':', &digits) || !digits.size || digits.size > 6)
            return false;
        for (; digits.size; digits.at++, digits.size--) {
            if (*digits.at < '0' || *digits.at > '9')
                return false;
            size = 10 * size + (size_t)(*digits.at - '0');
        }
        if (size >= rest.size || rest.at[size] != '\n')
            return false;
        *(is(tag, "status") ? status : is(tag, "text") ? text : &other) = (struct bytes){rest.at, size};
        rest = (struct bytes){rest.at + size + 1, rest.size - size - 1};
    }
    return true;
}

/* End as the monitor says. */
static _Noreturn void answer(int connection)
{
    static char datagram[LIMIT];
    struct bytes status = {"", 0}, text = {"", 0};
    ssize_t size = recv(connection, datagram, sizeof datagram, 0);

    if (size < 0)
        fault();
    if (size == 0)
        again("the monitor gave up this message");
    if (decode((struct bytes){datagram, (size_t)size}, &status, &text)) {
        if (is(status, "ok"))
            end(DELIVERED, "", "", 0);
        if (is(status, "reject") && begins(text, "5."))
            end(REJECTED, "", text.at, text.size);
        if (is(status, "defer"))
            end(AGAIN, begins(text, "4.") ? "" : "4.3.0 ", text.at, text.size);
    }
    again("milterapp-pipe: the monitor's answer makes no sense");
}

static bool is_option(const char *argument)
{
    return !strncmp(argument, "--socket=", 9) || !strncmp(argument, "--virtual=", 10);
}

int main(int count, char **arguments)
{
    static char datagram[LIMIT + 1];
    const char *path = SOCKET, *kind = "DELIVER";
    struct stat found;
    pid_t parent = getppid();

    heed_signals();
    arguments++; /* the program's own name */
    count--;
    if (count == FIELDS + 1 && is_option(*arguments)) {
        kind = !strncmp(*arguments, "--virtual=", 10) ? "VIRTUAL" : kind;
        path = strchr(*arguments, '=') + 1;
        arguments++;
        count--;
    }
    /* An option and four more: one after it was lost. A sender that looks like an option holds an `@`. */
    if (count != FIELDS || (is_option(*arguments) && strstr(*arguments, "=/") && !strchr(*arguments, '@')))
        again("milterapp-pipe: %d arguments, expected %d: see argv= in master.cf", count, FIELDS);
    int message = receive();
    finished(parent);
    if (fstat(message, &found))
        fault();
    if (!found.st_size)
        again("no message on standard input");
    if (fcntl(message, F_ADD_SEALS, SEALS))
        fault();
    int connection = reach(path);
    size_t size = encode(datagram, kind, arguments);
    finished(parent);
    hand_over(connection, message, datagram, size);
    answer(connection);
}
