/* Runs the plug-in that it is linked with as an instance: attach URI NAME loop|thread
 *
 * `loop`: one thread, which has work of its own. `thread`: a thread for the instance; a line on standard input gives it up. */
#include "check.h"
#include <dvm.h>
#include <dvm_plugin.h>
#include <poll.h>
#include <pthread.h>

static void *run(void *attached) {
    static int ended;
    ended = dvm_attached_wait(attached, -1);
    return &ended;
}

static int in_a_thread(dvm_attached_t *attached) {
    pthread_t thread;
    void *ended;
    char line[8];
    check(pthread_create(&thread, NULL, run, attached) == 0, "no thread");
    if (fgets(line, sizeof line, stdin) != NULL)
        dvm_attached_end(attached);
    check(pthread_join(thread, &ended) == 0, "the thread does not end");
    return *(int *)ended;
}

static int in_a_loop(dvm_attached_t *attached) {
    struct pollfd fds[] = {{.fd = dvm_attached_fd(attached), .events = POLLIN}};
    int ran = 0;
    long own_work = 0;
    while (ran >= 0) {
        /* A moment without work of its own, as in a program that computes and looks. */
        check(poll(fds, 1, 5) >= 0, "poll");
        if (fds[0].revents != 0)
            ran = dvm_attached_run_pending(attached);
        own_work++;
    }
    check(own_work > 0, "the loop is the program's own");
    return ran;
}

int main(int argc, char **argv) {
    dvm_t *dvm;
    dvm_attached_t *attached;
    check(argc == 4 && dvm_open(&dvm, argv[1]) == 0, dvm_error(NULL));
    check(dvm_attach(dvm, argv[2], &dvm_plugin_v1, &attached) == 0, dvm_error(dvm));
    /* The instance has a connection of its own. */
    dvm_close(dvm);
    puts("attached");
    fflush(stdout);
    int ended = strcmp(argv[3], "thread") == 0 ? in_a_thread(attached) : in_a_loop(attached);
    printf("%d %s\n", ended, dvm_attached_error(attached));
    check(dvm_attached_run_pending(attached) == ended, "it says so again");
    check(dvm_attached_wait(attached, 0) == ended, "it says so again");
    dvm_detach(attached);
    return 0;
}
