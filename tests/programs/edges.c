/* What a program may and may not do with an instance: edges URI */
#include "check.h"
#include <dvm.h>
#include <dvm_plugin.h>
#include <poll.h>
#include <sys/wait.h>

static dvm_attached_t *attached;
static int detaches, stopped, applied;

static int start(const char *config, size_t size, const dvm_place_t *place, const dvm_host_t *host, void **instance,
                 const dvm_out_t *out) {
    (void)config, (void)size, (void)place, (void)host, (void)instance, (void)out;
    return DVM_DONE;
}

static int apply(void *instance, const char *command, size_t size, const dvm_meta_t *meta, const dvm_out_t *out) {
    (void)instance, (void)command, (void)size, (void)meta;
    check(dvm_attached_run_pending(attached) == DVM_USAGE, "a callback runs its own instance");
    check(dvm_attached_wait(attached, 0) == DVM_USAGE, "a callback waits for its own instance");
    check(strstr(dvm_attached_error(attached), "must not run the instance") != NULL, dvm_attached_error(attached));
    check(dvm_attached_fd(attached) >= 0, "the descriptor in a callback");
    applied++;
    if (detaches)
        dvm_detach(attached);
    dvm_write(out, "1", 1);
    return DVM_DONE;
}

static void stop(void *instance) {
    (void)instance;
    stopped++;
}

static const dvm_functions_t functions = {.start = start, .apply = apply, .stop = stop};
static const dvm_plugin_v1_t code = {sizeof code, DVM_PLUGIN_ABI, sizeof functions, DVM_FLAG_STATELESS, &functions, NULL};

static void refused(dvm_t *dvm, const char *name, const dvm_plugin_v1_t *table, int wanted, const char *words) {
    attached = (dvm_attached_t *)1;
    check(dvm_attach(dvm, name, table, &attached) == wanted, dvm_error(dvm));
    check(attached == NULL && strstr(dvm_error(dvm), words) != NULL, dvm_error(dvm));
}

static void child(void) {
    check(dvm_attached_fd(attached) == DVM_FORKED, "dvm_attached_fd");
    check(dvm_attached_run_pending(attached) == DVM_FORKED, "dvm_attached_run_pending");
    check(dvm_attached_wait(attached, -1) == DVM_FORKED, "dvm_attached_wait");
    check(strstr(dvm_attached_error(attached), "belongs to process") != NULL, dvm_attached_error(attached));
    dvm_attached_end(attached);
    dvm_detach(attached);
    _exit(stopped);
}

/* Runs what comes until so many commands were applied, or it is over. */
static int run(int commands) {
    struct pollfd loop = {.fd = dvm_attached_fd(attached), .events = POLLIN};
    int ran = 0;
    while (ran >= 0 && applied < commands) {
        check(poll(&loop, 1, 20000) == 1, "nothing comes");
        ran = dvm_attached_run_pending(attached);
    }
    return ran;
}

int main(int argc, char **argv) {
    dvm_t *dvm;
    int status;
    dvm_plugin_v1_t other = code;
    check(argc == 2 && dvm_open(&dvm, argv[1]) == 0, dvm_error(NULL));
    other.abi = UINT32_C(2) << 16;
    refused(dvm, "edges", &other, DVM_USAGE, "is of ABI 2.0");
    refused(dvm, "edges", NULL, DVM_USAGE, "table is NULL");
    refused(dvm, "nonesuch", &code, DVM_FAILURE, "no plug-in of that name");
    refused(dvm, "counter", &code, DVM_FAILURE, "is not loaded with --placement application");
    check(dvm_attach(dvm, "edges", &code, &attached) == 0, dvm_error(dvm));
    dvm_attached_t *mine = attached;
    refused(dvm, "edges", &code, DVM_FAILURE, "this member's instance");
    attached = mine;
    puts("attached");
    fflush(stdout);
    run(1);

    pid_t pid = fork();
    if (pid == 0)
        child();
    check(waitpid(pid, &status, 0) == pid, "the child is waited for");
    check(WIFEXITED(status) && WEXITSTATUS(status) == 0, "the child found something wrong");
    puts("forked");
    fflush(stdout);
    check(run(2) > 0, "the parent's instance goes on");
    check(dvm_attached_wait(attached, 30) == 0, "time is up");

    /* Given up, it stops here, and the place is free; the next one is given up by a callback. */
    dvm_detach(attached);
    check(stopped == 1, "it was not stopped");
    do {
        status = dvm_attach(dvm, "edges", &code, &attached);
        check(status == 0 || strstr(dvm_error(dvm), "this member's instance") != NULL, dvm_error(dvm));
    } while (status != 0);
    puts("again");
    fflush(stdout);
    detaches = 1;
    check(run(3) < 0, "it goes on after it was given up");
    check(stopped == 2 && applied == 3, "it was not stopped once");
    dvm_close(dvm);
    puts("right");
    return 0;
}
