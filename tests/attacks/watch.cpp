// Preloaded into a process and all that it starts: notes each socket that is not local and each file that is made,
// renamed or opened for writing, a line each, in the file that $WATCH names. Names are looked up inside the C library,
// whose own sockets pass no symbol: hence getaddrinfo.
#include <dlfcn.h>
#include <fcntl.h>
#include <netdb.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace {

constexpr size_t SIZE = 1 << 20;

// The file is mapped, not written: a worker may be forbidden to write any. It begins with the length of what follows.
struct Log {
  size_t length;
  char text[SIZE - sizeof(size_t)];
};

Log* open_log() {
  const char* name = getenv("WATCH");
  const int file = name != nullptr ? syscall(SYS_openat, AT_FDCWD, name, O_RDWR | O_CLOEXEC) : -1;
  void* log = mmap(nullptr, SIZE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  if (log == MAP_FAILED) abort();
  close(file);
  return static_cast<Log*>(log);
}

void note(const char* what, const char* name) {
  static Log* log = open_log();
  char folder[4096] = "";
  if (name[0] != '/' && strcmp(what, "file") == 0 && getcwd(folder, sizeof folder - 1) != nullptr) strcat(folder, "/");
  char line[16384];
  const size_t length = snprintf(line, sizeof line, "%s %s%s\n", what, folder, name);
  const size_t start = __atomic_fetch_add(&log->length, length, __ATOMIC_SEQ_CST);
  if (start + length > sizeof log->text) abort();
  memcpy(log->text + start, line, length);
}

template <typename Function>
Function* next(const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

void note_open(const char* path, int flags) {
  if ((flags & O_ACCMODE) != O_RDONLY || (flags & O_CREAT)) note("file", path);
}

mode_t mode_of(int flags, va_list more) {
  return (flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(more, mode_t) : 0;
}

}  // namespace

#define OPEN(name)                                        \
  extern "C" int name(const char* path, int flags, ...) { \
    va_list more;                                         \
    va_start(more, flags);                                \
    const mode_t mode = mode_of(flags, more);             \
    va_end(more);                                         \
    note_open(path, flags);                               \
    static auto* real = next<decltype(name)>(#name);      \
    return real(path, flags, mode);                       \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                  \
  extern "C" int name(int folder, const char* path, int flags, ...) { \
    va_list more;                                                     \
    va_start(more, flags);                                            \
    const mode_t mode = mode_of(flags, more);                         \
    va_end(more);                                                     \
    note_open(path, flags);                                           \
    static auto* real = next<decltype(name)>(#name);                  \
    return real(folder, path, flags, mode);                           \
  }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name)                                             \
  extern "C" FILE* name(const char* path, const char* mode) {   \
    if (strpbrk(mode, "wa+") != nullptr) note("file", path);    \
    static auto* real = next<decltype(name)>(#name);            \
    return real(path, mode);                                    \
  }
FOPEN(fopen)
FOPEN(fopen64)

extern "C" int mkdir(const char* path, mode_t mode) {
  note("file", path);
  return next<decltype(mkdir)>("mkdir")(path, mode);
}

extern "C" int rename(const char* from, const char* to) {
  note("file", to);
  return next<decltype(rename)>("rename")(from, to);
}

extern "C" int socket(int domain, int type, int protocol) {
  if (domain != AF_UNIX) {
    char number[32];
    snprintf(number, sizeof number, "of family %d", domain);
    note("a socket", number);
  }
  return next<decltype(socket)>("socket")(domain, type, protocol);
}

extern "C" int getaddrinfo(const char* host, const char* service, const addrinfo* hints, addrinfo** found) {
  note("a look-up", host != nullptr ? host : "of nothing");
  return next<decltype(getaddrinfo)>("getaddrinfo")(host, service, hints, found);
}
