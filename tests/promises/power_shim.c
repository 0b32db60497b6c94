/* A disk that forgets: writes down, in order, what a process does to the files of one folder.
 *
 * Loaded before libc (LD_PRELOAD), it is idle until the process calls power_on(). From then on each operation below is
 * appended to a log, from which power.py makes the folder as a disk has it that lost its power. fsync and fdatasync are
 * written down and not done: the real disk has no part in this. Instead of operation number `last` + 1 the process is
 * killed. Not seen: rename, openat, pwritev, mmap. SQLite does none of them here, except to its -shm file, which need
 * not survive.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define FILES 1024
#define NAME 64
#define REAL(result, name, ...) ((result(*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name))

struct entry {
    char what; /* Created, Written, Truncated, Synced, Unlinked */
    char name[NAME];
    int64_t offset, length;
} __attribute__((packed));

static char folder[4096];
static char known_as[FILES][NAME]; /* by descriptor: "." is the folder itself, "" is none of ours */
static int book = -1;
static int64_t begun, last;
static pthread_mutex_t turn = PTHREAD_MUTEX_INITIALIZER;

void power_on(const char *of, const char *log, int64_t operations) {
    strncpy(folder, of, sizeof folder - 1);
    last = operations;
    book = REAL(int, open64, const char *, int, ...)(log, O_WRONLY | O_CREAT | O_APPEND, 0600);
}

/* What a path is called in the folder, NULL for one that is elsewhere. */
static const char *within(const char *path) {
    size_t length = strlen(folder);
    if (book < 0 || strncmp(path, folder, length) != 0) return NULL;
    if (path[length] == 0) return ".";
    return path[length] == '/' && strlen(path + length + 1) < NAME ? path + length + 1 : NULL;
}

static const char *name_of(int fd) {
    return book >= 0 && fd >= 0 && fd < FILES && known_as[fd][0] ? known_as[fd] : NULL;
}

static void begin(void) {
    pthread_mutex_lock(&turn);
    if (begun++ == last) kill(getpid(), SIGKILL);
}

/* What failed, or did nothing, is not written down. */
static void end(int happened, char what, const char *name, int64_t offset, int64_t length, const void *data) {
    struct entry entry = {.what = what, .offset = offset, .length = length};
    strncpy(entry.name, name, NAME - 1);
    struct iovec parts[] = {{&entry, sizeof entry}, {(void *)data, length}};
    if (happened && writev(book, parts, 2) < 0) kill(getpid(), SIGKILL);
    pthread_mutex_unlock(&turn);
}

static int open_file(const char *path, int flags, mode_t mode) {
    int (*real)(const char *, int, ...) = REAL(int, open64, const char *, int, ...);
    const char *name = within(path);
    if (name == NULL) return real(path, flags, mode);
    int fresh = access(path, F_OK) != 0, changes = flags & (fresh ? O_CREAT : O_TRUNC);
    if (changes) begin();
    int fd = real(path, flags, mode);
    if (changes) end(fd >= 0, fresh ? 'C' : 'T', name, 0, 0, NULL);
    if (fd >= 0 && fd < FILES) strcpy(known_as[fd], name);
    return fd;
}

#define OPEN(name)                                                                                                     \
    int name(const char *path, int flags, ...) {                                                                       \
        va_list rest;                                                                                                  \
        va_start(rest, flags);                                                                                         \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;                                        \
        va_end(rest);                                                                                                  \
        return open_file(path, flags, mode);                                                                           \
    }

OPEN(open)
OPEN(open64)

int close(int fd) {
    if (fd >= 0 && fd < FILES) known_as[fd][0] = 0;
    return REAL(int, close, int)(fd);
}

ssize_t write(int fd, const void *data, size_t size) {
    ssize_t (*real)(int, const void *, size_t) = REAL(ssize_t, write, int, const void *, size_t);
    const char *name = name_of(fd);
    if (name == NULL) return real(fd, data, size);
    begin();
    ssize_t written = real(fd, data, size);
    end(written > 0, 'W', name, lseek(fd, 0, SEEK_CUR) - written, written, data);
    return written;
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t offset) {
    ssize_t (*real)(int, const void *, size_t, off64_t) =
        REAL(ssize_t, pwrite64, int, const void *, size_t, off64_t);
    const char *name = name_of(fd);
    if (name == NULL) return real(fd, data, size, offset);
    begin();
    ssize_t written = real(fd, data, size, offset);
    end(written > 0, 'W', name, offset, written, data);
    return written;
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t offset) { return pwrite64(fd, data, size, offset); }

int ftruncate64(int fd, off64_t length) {
    int (*real)(int, off64_t) = REAL(int, ftruncate64, int, off64_t);
    const char *name = name_of(fd);
    if (name == NULL) return real(fd, length);
    begin();
    int result = real(fd, length);
    end(result == 0, 'T', name, length, 0, NULL);
    return result;
}

int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }

int fsync(int fd) {
    const char *name = name_of(fd);
    if (name == NULL) return REAL(int, fsync, int)(fd);
    begin();
    end(1, 'S', name, 0, 0, NULL);
    return 0;
}

int fdatasync(int fd) { return name_of(fd) ? fsync(fd) : REAL(int, fdatasync, int)(fd); }

int unlink(const char *path) {
    int (*real)(const char *) = REAL(int, unlink, const char *);
    const char *name = within(path);
    if (name == NULL) return real(path);
    begin();
    int result = real(path);
    end(result == 0, 'U', name, 0, 0, NULL);
    return result;
}
