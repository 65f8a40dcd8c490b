#include <dvm.h>
#include <dvm_plugin.h>
#include <poll.h>

/* A counter whose instance is in this program, beside its own work. */
typedef struct tally {
    int64_t value, step;
} tally_t;

static int start(const char *config, size_t size, const dvm_place_t *place, const dvm_host_t *host, void **instance,
                 const dvm_out_t *out) {
    tally_t *tally = calloc(1, sizeof *tally);
    (void)place, (void)host;
    if (tally == NULL)
        return dvm_fail(out, "out of memory");
    tally->step = 1;
    dvm_get_int(config, size, "step", &tally->step);
    *instance = tally;
    return DVM_DONE;
}

static int apply(void *instance, const char *command, size_t size, const dvm_meta_t *meta, const dvm_out_t *out) {
    tally_t *tally = instance;
    int64_t times;
    (void)meta;
    if (dvm_get_int(command, size, "add", &times) <= 0)
        return dvm_fail(out, "a command is {\"add\":N}");
    tally->value += times * tally->step;
    dvm_object_t reply = dvm_begin(out);
    dvm_put_int(&reply, "value", tally->value);
    return dvm_end(&reply);
}

static void on_event(void *instance, const dvm_told_t *event) {
    char member[64];
    (void)instance;
    if (strcmp(event->kind, "member-failed") == 0 &&
        dvm_get_string(event->json, event->json_size, "member", member, sizeof member) > 0)
        printf("%s failed\n", member);
}

static void on_role(void *instance, int role, uint64_t fence) {
    tally_t *tally = instance;
    (void)fence;
    printf("%s at %" PRId64 "\n", role == DVM_PRIMARY ? "primary" : "standby", tally->value);
}

static int snapshot(void *instance, const dvm_out_t *out) {
    tally_t *tally = instance;
    dvm_write(out, &tally->value, sizeof tally->value);
    return DVM_DONE;
}

static int restore(void *instance, const void *state, size_t size, const dvm_out_t *out) {
    tally_t *tally = instance;
    if (size != sizeof tally->value)
        return dvm_fail(out, "a state has %zu bytes, not %zu", sizeof tally->value, size);
    memcpy(&tally->value, state, size);
    return DVM_DONE;
}

static void stop(void *instance) {
    free(instance);
}

static const dvm_functions_t functions = {.start = start, .apply = apply, .on_event = on_event, .on_role = on_role,
                                          .snapshot = snapshot, .restore = restore, .stop = stop};

DVM_PLUGIN("tally", "1.0.0", DVM_JSON, functions)

int main(void) {
    dvm_t *dvm;
    dvm_attached_t *attached;
    if (dvm_open(&dvm, NULL) < 0 || dvm_attach(dvm, "tally", &dvm_plugin_v1, &attached) < 0) {
        fprintf(stderr, "error: %s\n", dvm_error(dvm));
        return 1;
    }
    struct pollfd fds[] = {{.fd = dvm_attached_fd(attached), .events = POLLIN} /* and your own */};
    int ran = 0;
    while (ran >= 0 && poll(fds, 1, -1) >= 0) {
        ran = dvm_attached_run_pending(attached);
        fflush(stdout);
    }
    if (ran != DVM_ENDED)
        fprintf(stderr, "error: %s\n", dvm_attached_error(attached));
    dvm_detach(attached);
    dvm_close(dvm);
    return ran != DVM_ENDED;
}
