/* Remembers beside each file how much of it has been synced, so that a crash of the machine can be played: whoever
 * truncates the files to that leaves what a disk would have kept. To be preloaded into a server.
 *
 * The size is taken before the call, since what is written meanwhile may be on the disk or not. Names are taken to be
 * durable at once: what renames a file renames its mark. `sync_file_range` makes nothing durable, and is let be. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define SUFFIX ".synced"
#define WIDTH 20 /* of the number, so that it is replaced by one write: a kill leaves the old one or the new one */
#define MARK_MAX (PATH_MAX + sizeof SUFFIX)

static void *real(const char *name) {
    void *found = dlsym(RTLD_NEXT, name);
    if (!found) {
        fprintf(stderr, "shim: no %s\n", name);
        abort();
    }
    return found;
}

/* The length that a mark says; -1 for none. */
static long long read_mark(int mark) {
    char text[WIDTH + 1] = {0};
    return pread(mark, text, WIDTH, 0) == WIDTH ? atoll(text) : -1;
}

/* Set a file's mark: never lower by a sync, since two can overtake each other, never higher by a truncation. */
static void set_mark(const char *path, long long length, int lower) {
    char name[MARK_MAX], text[WIDTH + 1];
    snprintf(name, sizeof name, "%s" SUFFIX, path);
    int mark = open(name, lower ? O_RDWR : O_RDWR | O_CREAT, 0600);
    if (mark < 0) return;
    flock(mark, LOCK_EX);
    long long known = read_mark(mark);
    if (lower ? length < known : length > known) {
        snprintf(text, sizeof text, "%0*lld", WIDTH, length);
        if (pwrite(mark, text, WIDTH, 0) != WIDTH) abort();
    }
    close(mark);
}

/* The path of an open regular file that still has one. */
static int path_of(int fd, struct stat *found, char *path) {
    char link[64];
    if (fstat(fd, found) || !S_ISREG(found->st_mode) || found->st_nlink == 0) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return 1;
}

static int synced(int fd, int (*call)(int)) {
    struct stat before;
    char path[PATH_MAX];
    int saved = errno, known = path_of(fd, &before, path);
    errno = saved;
    int result = call(fd);
    saved = errno;
    if (result == 0 && known) set_mark(path, (long long)before.st_size, 0);
    errno = saved;
    return result;
}

int fsync(int fd) { return synced(fd, (int (*)(int))real("fsync")); }

int fdatasync(int fd) { return synced(fd, (int (*)(int))real("fdatasync")); }

static int cut(int fd, off64_t length) {
    struct stat now;
    char path[PATH_MAX];
    int result = ((int (*)(int, off64_t))real("ftruncate64"))(fd, length), saved = errno;
    if (result == 0 && path_of(fd, &now, path)) set_mark(path, (long long)length, 1);
    errno = saved;
    return result;
}

static int cut_path(const char *path, off64_t length) {
    int result = ((int (*)(const char *, off64_t))real("truncate64"))(path, length), saved = errno;
    if (result == 0) set_mark(path, (long long)length, 1);
    errno = saved;
    return result;
}

int ftruncate(int fd, off_t length) { return cut(fd, length); }

int ftruncate64(int fd, off64_t length) { return cut(fd, length); }

int truncate(const char *path, off_t length) { return cut_path(path, length); }

int truncate64(const char *path, off64_t length) { return cut_path(path, length); }

int rename(const char *from, const char *to) {
    int (*call)(const char *, const char *) = (int (*)(const char *, const char *))real("rename");
    char from_mark[MARK_MAX], to_mark[MARK_MAX];
    snprintf(from_mark, sizeof from_mark, "%s" SUFFIX, from);
    snprintf(to_mark, sizeof to_mark, "%s" SUFFIX, to);
    int result = call(from, to), saved = errno;
    /* A file that was never synced must not inherit the mark of the one that it replaces. */
    if (result == 0 && call(from_mark, to_mark)) ((int (*)(const char *))real("unlink"))(to_mark);
    errno = saved;
    return result;
}

int unlink(const char *path) {
    int (*call)(const char *) = (int (*)(const char *))real("unlink");
    char mark[MARK_MAX];
    int result = call(path), saved = errno;
    snprintf(mark, sizeof mark, "%s" SUFFIX, path);
    if (result == 0) call(mark);
    errno = saved;
    return result;
}
