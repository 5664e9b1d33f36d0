// Counts what a process does to files below one directory, and kills it, or fails, at a chosen one of these events, so
// that exactly the calls before it reach the kernel. Loaded with LD_PRELOAD, it stands before what Python and native
// code call in the C library alike.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static long events, last;        // the event numbered `last` (from 1) is the one; 0: none
static int failure, writes_only; // 0: SIGKILL, else this error number
static char below[PATH_MAX];

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

void faults_arm(long number, const char *directory, int error, int of_writes) {
  strncpy(below, directory, sizeof below - 1);
  events = 0, last = number, failure = error, writes_only = of_writes;
}

long faults_count(void) { return events; }

// Whether `path`, relative to the open directory `at`, is below the watched one.
static int watched(int at, const char *path) {
  char link[64], whole[2 * PATH_MAX];
  if (!below[0] || !path) return 0;
  if (path[0] == '/') return strncmp(path, below, strlen(below)) == 0;
  if (at == AT_FDCWD) {
    if (!getcwd(whole, PATH_MAX)) return 0;
  } else {
    snprintf(link, sizeof link, "/proc/self/fd/%d", at);
    ssize_t length = readlink(link, whole, PATH_MAX);
    if (length < 0) return 0;
    whole[length] = 0;
  }
  return strncmp(whole, below, strlen(below)) == 0;
}

static int watched_fd(int fd) { return watched(fd, ""); }

// Counts an event; 1 if it is the one that fails. It does not return if it is the one that kills.
static int event(int here, int is_write) {
  if (!here || (writes_only && !is_write) || ++events != last) return 0;
  if (!failure) kill(getpid(), SIGKILL);
  errno = failure;
  return 1;
}

// Half of what the fatal write was to write arrives.
static void tear(int fd, const void *data, size_t size, int here) {
  if (here && last == events + 1 && !failure) REAL(write)(fd, data, size / 2);
}

#define CHANGES(flags) ((flags) & (O_WRONLY | O_RDWR | O_CREAT | O_TRUNC))
#define MODE                                                                                                           \
  mode_t mode = 0;                                                                                                     \
  if (flags & (O_CREAT | __O_TMPFILE)) {                                                                               \
    va_list rest;                                                                                                      \
    va_start(rest, flags);                                                                                             \
    mode = va_arg(rest, mode_t);                                                                                       \
    va_end(rest);                                                                                                      \
  }

#define OPEN(name)                                                                                                 \
  int name(const char *path, int flags, ...) {                                                                         \
    MODE                                                                                                               \
    return CHANGES(flags) && event(watched(AT_FDCWD, path), 0) ? -1 : REAL(name)(path, flags, mode);                   \
  }
#define OPENAT(name)                                                                                                   \
  int name(int at, const char *path, int flags, ...) {                                                                 \
    MODE                                                                                                               \
    return CHANGES(flags) && event(watched(at, path), 0) ? -1 : REAL(name)(at, path, flags, mode);                     \
  }
OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
FILE *fopen(const char *path, const char *mode) {
  return mode[0] != 'r' && event(watched(AT_FDCWD, path), 0) ? NULL : REAL(fopen)(path, mode);
}
FILE *fopen64(const char *path, const char *mode) {
  return mode[0] != 'r' && event(watched(AT_FDCWD, path), 0) ? NULL : REAL(fopen64)(path, mode);
}

ssize_t write(int fd, const void *data, size_t size) {
  int here = watched_fd(fd);
  tear(fd, data, size, here);
  return event(here, 1) ? -1 : REAL(write)(fd, data, size);
}
ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
  return event(watched_fd(fd), 1) ? -1 : REAL(pwrite)(fd, data, size, at);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
  return event(watched_fd(fd), 1) ? -1 : REAL(pwrite64)(fd, data, size, at);
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
  return event(watched_fd(fd), 1) ? -1 : REAL(writev)(fd, parts, count);
}

#define CALL(name, here, parameters, ...)                                                                              \
  int name parameters { return event(here, 0) ? -1 : REAL(name)(__VA_ARGS__); }
CALL(fsync, watched_fd(fd), (int fd), fd)
CALL(fdatasync, watched_fd(fd), (int fd), fd)
CALL(ftruncate, watched_fd(fd), (int fd, off_t size), fd, size)
CALL(ftruncate64, watched_fd(fd), (int fd, off64_t size), fd, size)
CALL(fchmod, watched_fd(fd), (int fd, mode_t mode), fd, mode)
CALL(chmod, watched(AT_FDCWD, path), (const char *path, mode_t mode), path, mode)
CALL(fchmodat, watched(at, path), (int at, const char *path, mode_t mode, int flags), at, path, mode, flags)
CALL(chown, watched(AT_FDCWD, path), (const char *path, uid_t user, gid_t group), path, user, group)
CALL(mkdir, watched(AT_FDCWD, path), (const char *path, mode_t mode), path, mode)
CALL(mkdirat, watched(at, path), (int at, const char *path, mode_t mode), at, path, mode)
CALL(rmdir, watched(AT_FDCWD, path), (const char *path), path)
CALL(unlink, watched(AT_FDCWD, path), (const char *path), path)
CALL(unlinkat, watched(at, path), (int at, const char *path, int flags), at, path, flags)
CALL(rename, watched(AT_FDCWD, to), (const char *from, const char *to), from, to)
CALL(renameat, watched(b, to), (int a, const char *from, int b, const char *to), a, from, b, to)
CALL(renameat2, watched(b, to), (int a, const char *from, int b, const char *to, unsigned int flags), a, from, b, to, flags)
CALL(link, watched(AT_FDCWD, to), (const char *from, const char *to), from, to)
CALL(linkat, watched(b, to), (int a, const char *from, int b, const char *to, int flags), a, from, b, to, flags)
CALL(symlink, watched(AT_FDCWD, to), (const char *from, const char *to), from, to)
