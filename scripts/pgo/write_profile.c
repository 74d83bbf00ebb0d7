// Linked into the instrumented build of scripts/build-pgo, in place of _exit (ld --wrap): writes the profile of a process that leaves
// by _exit, as workers do. The runtime of LLVM, whose functions these are, writes it only when a process leaves by exit.
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

void __llvm_profile_set_filename(const char *);
int __llvm_profile_write_file(void);
void __real__exit(int) __attribute__((noreturn));

void __wrap__exit(int status) {
    const char *directory = getenv("PREFORK_PROFILES");
    // The name that was set at the start is that of the process which has forked this one.
    static char name[4096];
    if (directory && snprintf(name, sizeof name, "%s/worker-%d.profraw", directory, (int)getpid()) < (int)sizeof name) {
        __llvm_profile_set_filename(name);
        __llvm_profile_write_file();
    }
    __real__exit(status);
}
