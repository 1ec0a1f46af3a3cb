/* Goes before the C library (LD_PRELOAD): a disk that is sick or slow, and a clock that is wrong.

   FAULT_PATH      part of the names of the files that are concerned
   FAULT_CALLS     "read" (and pread), "write" (and pwrite) or "sync"
   FAULT_COUNTER   a file whose size is the number of such calls so far, of all processes
   FAULT_FIRST     the first call that goes wrong, from 1; FAULT_MANY: how many do
   FAULT_ERRNO     what it says then; FAULT_SLEEP_MS: how long it takes, whether or not it fails
   FAULT_CLOCK_S   how far the clock is ahead; what the file system writes down is not touched */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static long number(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text ? atol(text) : otherwise;
}

static int concerns(int file, const char *call) {
    const char *part = getenv("FAULT_PATH"), *calls = getenv("FAULT_CALLS");
    char link[64], path[4096];
    ssize_t length;
    if (!part || !calls || !strstr(calls, call)) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", file);
    length = readlink(link, path, sizeof path - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return strstr(path, part) != NULL;
}

static long counted(void) {
    const char *path = getenv("FAULT_COUNTER");
    long count = 0;
    int file = path ? open(path, O_WRONLY | O_APPEND | O_CREAT, 0600) : -1;
    if (file < 0) return 0;
    syscall(SYS_write, file, ".", 1L);
    count = (long)lseek(file, 0, SEEK_CUR);
    close(file);
    return count;
}

static int fails(int file, const char *call) {
    struct timespec pause;
    long count, first, code = number("FAULT_ERRNO", 0), sleep_ms = number("FAULT_SLEEP_MS", 0);
    if (!concerns(file, call)) return 0;
    count = counted();
    first = number("FAULT_FIRST", 1);
    if (count < first || count >= first + number("FAULT_MANY", 1L << 40)) return 0;
    pause.tv_sec = sleep_ms / 1000;
    pause.tv_nsec = sleep_ms % 1000 * 1000000L;
    if (sleep_ms) nanosleep(&pause, NULL);
    if (!code) return 0;
    errno = (int)code;
    return 1;
}

#define NEXT(type, name, ...) ((type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name))

ssize_t read(int file, void *to, size_t count) {
    return fails(file, "read") ? -1 : NEXT(ssize_t, "read", int, void *, size_t)(file, to, count);
}
ssize_t pread(int file, void *to, size_t count, off_t at) {
    return fails(file, "read") ? -1 : NEXT(ssize_t, "pread", int, void *, size_t, off_t)(file, to, count, at);
}
ssize_t pread64(int file, void *to, size_t count, off64_t at) {
    return fails(file, "read") ? -1 : NEXT(ssize_t, "pread64", int, void *, size_t, off64_t)(file, to, count, at);
}
ssize_t write(int file, const void *from, size_t count) {
    return fails(file, "write") ? -1 : NEXT(ssize_t, "write", int, const void *, size_t)(file, from, count);
}
ssize_t pwrite64(int file, const void *from, size_t count, off64_t at) {
    return fails(file, "write") ? -1
                                : NEXT(ssize_t, "pwrite64", int, const void *, size_t, off64_t)(file, from, count, at);
}
int fsync(int file) { return fails(file, "sync") ? -1 : NEXT(int, "fsync", int)(file); }

int clock_gettime(clockid_t clock, struct timespec *now) {
    int result = (int)syscall(SYS_clock_gettime, clock, now);
    if (!result && clock == CLOCK_REALTIME) now->tv_sec += number("FAULT_CLOCK_S", 0);
    return result;
}
time_t time(time_t *now) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    if (now) *now = found.tv_sec;
    return found.tv_sec;
}
int gettimeofday(struct timeval *now, void *zone) {
    struct timespec found;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &found);
    now->tv_sec = found.tv_sec;
    now->tv_usec = found.tv_nsec / 1000;
    return 0;
}
