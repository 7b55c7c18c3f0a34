/* A library that is preloaded and lets calls for files fail, as a disk, a server or a missing right does.
 *
 * FAULT_CALL   open, list, look, read, lock
 * FAULT_PATH   the call fails for paths that have this in them
 * FAULT_ERRNO  with this error
 *
 * FAULT_LOG    a file that gets a line for each fsync, rename and symlink that was done, in their order
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static int fails(const char *call, const char *path) {
  const char *wanted = getenv("FAULT_CALL"), *part = getenv("FAULT_PATH"), *code = getenv("FAULT_ERRNO");
  if (!wanted || !part || !code || !path || strcmp(wanted, call) || !strstr(path, part)) return 0;
  errno = atoi(code);
  return 1;
}

static int named(int fd, char *path, size_t room) {
  char name[64];
  snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
  ssize_t n = syscall(SYS_readlink, name, path, room - 1);
  if (n >= 0) path[n] = 0;
  return n >= 0;
}

static int noted(int done, const char *call, const char *from, const char *to) {
  const char *log = getenv("FAULT_LOG");
  if (!log || done) return done;
  char line[9000];
  int n = snprintf(line, sizeof line, "%s\t%s\t%s\n", call, from, to);
  int fd = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND, 0600);
  if (fd >= 0) { syscall(SYS_write, fd, line, n); syscall(SYS_close, fd); }
  return done;
}

static int fails_for(const char *call, int fd) {
  char path[4096];
  if (!getenv("FAULT_CALL")) return 0;
  return named(fd, path, sizeof path) && fails(call, path);
}

static int synced(int done, int fd) {
  char path[4096];
  if (done || !getenv("FAULT_LOG") || !named(fd, path, sizeof path)) return done;
  return noted(done, "fsync", path, "");
}

#define NEXT(name) __typeof__(&name) next = (__typeof__(&name))dlsym(RTLD_NEXT, #name)
#define MODE(flags) mode_t mode = 0; if ((flags) & (O_CREAT | __O_TMPFILE)) { va_list all; va_start(all, flags); mode = va_arg(all, mode_t); va_end(all); }

int open(const char *path, int flags, ...) { MODE(flags) if (fails("open", path)) return -1; NEXT(open); return next(path, flags, mode); }
int open64(const char *path, int flags, ...) { MODE(flags) if (fails("open", path)) return -1; NEXT(open64); return next(path, flags, mode); }
int openat(int at, const char *path, int flags, ...) { MODE(flags) if (fails("open", path)) return -1; NEXT(openat); return next(at, path, flags, mode); }
int openat64(int at, const char *path, int flags, ...) { MODE(flags) if (fails("open", path)) return -1; NEXT(openat64); return next(at, path, flags, mode); }
DIR *opendir(const char *path) { if (fails("list", path)) return NULL; NEXT(opendir); return next(path); }
int statx(int at, const char *restrict path, int flags, unsigned mask, struct statx *restrict into) { if (fails("look", path)) return -1; NEXT(statx); return next(at, path, flags, mask, into); }
int stat64(const char *restrict path, struct stat64 *restrict into) { if (fails("look", path)) return -1; NEXT(stat64); return next(path, into); }
ssize_t read(int fd, void *into, size_t n) { if (fails_for("read", fd)) return -1; NEXT(read); return next(fd, into, n); }
ssize_t pread64(int fd, void *into, size_t n, off64_t from) { if (fails_for("read", fd)) return -1; NEXT(pread64); return next(fd, into, n, from); }
int flock(int fd, int how) { if (fails_for("lock", fd)) return -1; NEXT(flock); return next(fd, how); }
int fsync(int fd) { NEXT(fsync); return synced(next(fd), fd); }
int fdatasync(int fd) { NEXT(fdatasync); return synced(next(fd), fd); }
int rename(const char *from, const char *to) { NEXT(rename); return noted(next(from, to), "rename", from, to); }
int symlink(const char *to, const char *at) { NEXT(symlink); return noted(next(to, at), "symlink", to, at); }
