/* Loaded before all other libraries: writes into the file $PPSD3_TRACE what native code opens, connects to and runs. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

static void note(const char *what, const char *name) {
  const char *log = getenv("PPSD3_TRACE");
  char line[5000];
  int length, file;
  if (!log || !name) return;
  length = snprintf(line, sizeof line, "%s\t%s\n", what, name);
  if (length >= (int)sizeof line) length = sizeof line - 1;
  file = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_APPEND | O_CREAT, 0600);
  if (file < 0) return;
  if (write(file, line, length) < 0) abort();
  syscall(SYS_close, file);
}

#define OPEN(name)                                         \
  int name(const char *path, int flags, ...) {             \
    va_list more;                                          \
    int mode;                                              \
    va_start(more, flags);                                 \
    mode = va_arg(more, int);                              \
    va_end(more);                                          \
    note("native open", path);                                    \
    return syscall(SYS_openat, AT_FDCWD, path, flags, mode); \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                      \
  int name(int directory, const char *path, int flags, ...) { \
    va_list more;                                         \
    int mode;                                             \
    va_start(more, flags);                                \
    mode = va_arg(more, int);                             \
    va_end(more);                                         \
    if (directory == AT_FDCWD || path[0] == '/') note("native open", path); \
    return syscall(SYS_openat, directory, path, flags, mode); \
  }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name)                                               \
  FILE *name(const char *path, const char *mode) {                \
    FILE *(*next)(const char *, const char *) = dlsym(RTLD_NEXT, #name); \
    note("native open", path);                                           \
    return next(path, mode);                                      \
  }
FOPEN(fopen)
FOPEN(fopen64)

int connect(int file, const struct sockaddr *address, socklen_t length) {
  int (*next)(int, const struct sockaddr *, socklen_t) = dlsym(RTLD_NEXT, "connect");
  note("native connect", address->sa_family == AF_UNIX ? "a socket of this machine" : "an address");
  return next(file, address, length);
}

int execve(const char *path, char *const arguments[], char *const environment[]) {
  int (*next)(const char *, char *const[], char *const[]) = dlsym(RTLD_NEXT, "execve");
  note("native run", path);
  return next(path, arguments, environment);
}
