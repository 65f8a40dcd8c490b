/* A child that is forked must not touch what its parent has: fork URI */
#define _GNU_SOURCE
#include "check.h"
#include <dirent.h>
#include <dvm.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>

/* Threads of this process, or those of its descriptors beyond the standard ones that a program it execs would keep. */
static int count(const char *directory) {
    DIR *entries = opendir(directory);
    struct dirent *entry;
    int found = 0;
    while ((entry = readdir(entries))) {
        int number = atoi(entry->d_name);
        if (entry->d_name[0] == '.')
            continue;
        if (strstr(directory, "/fd") && (number < 3 || (fcntl(number, F_GETFD) & FD_CLOEXEC)))
            continue;
        found++;
    }
    closedir(entries);
    return found;
}

static void add(dvm_t *dvm, const char *wanted) {
    char *reply;
    check(dvm_call(dvm, "counter", "{\"add\":1}", &reply, 10000) == 0, dvm_error(dvm));
    check(strcmp(reply, wanted) == 0, reply);
    dvm_free(reply);
}

static void child(dvm_t *dvm) {
    dvm_event_t event;
    char *reply = (char *)1;
    check(dvm_fd(dvm) == DVM_FORKED, "dvm_fd");
    check(dvm_subscribe(dvm, DVM_ALL, NULL) == DVM_FORKED, "dvm_subscribe");
    check(dvm_next_event(dvm, &event) == DVM_FORKED, "dvm_next_event");
    check(dvm_dispatch(dvm) == DVM_FORKED, "dvm_dispatch");
    check(dvm_call(dvm, "counter", "{\"add\":1}", &reply, 10000) == DVM_FORKED, "dvm_call");
    check(reply == NULL, "the reply after a failure");
    check(dvm_through(dvm) == NULL, "dvm_through");
    check(strstr(dvm_error(dvm), "belongs to process") != NULL, dvm_error(dvm));
    dvm_close(dvm);
    check(dvm_open(&dvm, getenv("URI")) == 0, dvm_error(NULL));
    add(dvm, "{\"value\":2}");
    dvm_close(dvm);
    _exit(0);
}

int main(int argc, char **argv) {
    dvm_t *dvm;
    dvm_event_t event;
    int status, told, events = 0, inherited = count("/proc/self/fd");
    check(argc == 2 && dvm_open(&dvm, argv[1]) == 0, dvm_error(NULL));
    setenv("URI", dvm_uri(dvm), 1);
    check(dvm_subscribe(dvm, DVM_MEMBER, "all") == 0, dvm_error(dvm));
    add(dvm, "{\"value\":1}");
    check(count("/proc/self/task") == 1, "the library has a thread");
    check(count("/proc/self/fd") == inherited, "a descriptor would be kept through exec");
    pid_t pid = fork();
    if (pid == 0)
        child(dvm);
    check(waitpid(pid, &status, 0) == pid, "the child is waited for");
    check(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child found something wrong");
    add(dvm, "{\"value\":3}");
    struct pollfd loop = {.fd = dvm_fd(dvm), .events = POLLIN};
    check(poll(&loop, 1, 10000) == 1, "events are waiting");
    while ((told = dvm_next_event(dvm, &event)) > 0)
        events++;
    check(told == 0 && events > 0, "the parent hears of the members");
    check(poll(&loop, 1, 50) == 0, "nothing is waiting any more");
    dvm_close(dvm);
    puts("right");
    return 0;
}
