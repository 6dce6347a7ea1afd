/* Ends the process with SIGKILL at the n-th call that makes something durable or goes away. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <unistd.h>

static int left = 0;

/* Die at call number n from now; 0: never. */
void arm(int n) { left = n; }

static void count(void) {
    if (left > 0 && --left == 0) kill(getpid(), SIGKILL);
}

#define COUNTED(name)                                        \
    int name(int descriptor) {                               \
        int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, #name); \
        count();                                             \
        return real(descriptor);                             \
    }

COUNTED(fsync)
COUNTED(fdatasync)

int unlink(const char *path) {
    int (*real)(const char *) = (int (*)(const char *))dlsym(RTLD_NEXT, "unlink");
    count();
    return real(path);
}
