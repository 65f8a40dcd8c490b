/* A sum in versions of which some fail when they are to take over, most of them on k1 alone; which one is said when it is
   compiled. */
#define _POSIX_C_SOURCE 200809L
#include <dvm_plugin.h>

#include <stdio.h>
#include <time.h>

#ifndef VERSION
#define VERSION "1.0.0"
#endif
#ifndef FAILS
#define FAILS ""
#endif
/* How long `start` takes on k2, milliseconds. */
#ifndef SLOW
#define SLOW 0
#endif
/* A file in which each state is counted that is taken on k1. */
#ifndef COUNTS
#define COUNTS "/dev/null"
#endif

typedef struct sum {
    int64_t value;
    int is_k1;
} sum_t;

/* Fails at this step, if this version does. */
static int fails(const sum_t *sum, const char *step) {
    if (sum->is_k1 && strcmp(FAILS, "abort") == 0 && strcmp(step, "restore") == 0)
        abort();
    return sum->is_k1 && strcmp(FAILS, step) == 0;
}

static int start(const char *config, size_t size, const dvm_place_t *place, const dvm_host_t *host, void **instance,
                 const dvm_out_t *out) {
    sum_t *sum = calloc(1, sizeof *sum);
    (void)config, (void)size, (void)host;
    if (sum == NULL)
        return dvm_fail(out, "out of memory");
    sum->is_k1 = strcmp(place->member, "k1") == 0;
    if (SLOW > 0 && strcmp(place->member, "k2") == 0)
        nanosleep(&(struct timespec){.tv_sec = SLOW / 1000, .tv_nsec = SLOW % 1000 * 1000000L}, NULL);
    if (fails(sum, "start")) {
        free(sum);
        return dvm_fail(out, "it does not start on k1");
    }
    *instance = sum;
    return DVM_DONE;
}

static int tell(const sum_t *sum, const dvm_out_t *out) {
    dvm_object_t reply = dvm_begin(out);
    dvm_put_int(&reply, "value", sum->value);
    dvm_put_string(&reply, "version", VERSION);
    return dvm_end(&reply);
}

static int apply(void *instance, const char *command, size_t size, const dvm_meta_t *meta, const dvm_out_t *out) {
    sum_t *sum = instance;
    int64_t more = 0;
    (void)meta;
    if (dvm_get_int(command, size, "add", &more) < 0)
        return dvm_fail(out, "`add` is an integer");
    sum->value += more;
    return tell(sum, out);
}

static int query(void *instance, const char *command, size_t size, const dvm_out_t *out) {
    (void)command, (void)size;
    return tell(instance, out);
}

static int snapshot(void *instance, const dvm_out_t *out) {
    if (fails(instance, "snapshot"))
        return dvm_fail(out, "it cannot tell its state");
    return tell(instance, out);
}

/* How many states were taken on k1, this one too. */
static long taken(const sum_t *sum) {
    FILE *counts = sum->is_k1 ? fopen(COUNTS, "a") : NULL;
    long count = 0;
    if (counts != NULL) {
        fputc('x', counts);
        count = ftell(counts);
        fclose(counts);
    }
    return count;
}

static int restore(void *instance, const void *state, size_t size, const dvm_out_t *out) {
    sum_t *sum = instance;
    long count = taken(sum);
    /* The one after the first, and the one after that. */
    if (fails(sum, "second") && (count == 2 || count == 3))
        return dvm_fail(out, "it takes no second state");
    if (strcmp(FAILS, "large") == 0 && dvm_get_int(state, size, "value", &sum->value) > 0 && sum->value > 10)
        return dvm_fail(out, "it takes no sum above 10");
    if (fails(sum, "restore") || dvm_get_int(state, size, "value", &sum->value) <= 0)
        return dvm_fail(out, "it does not take the state");
    return DVM_DONE;
}

static void stop(void *instance) {
    free(instance);
}

static const dvm_functions_t functions = {
    .start = start,
    .apply = apply,
    .query = query,
    .snapshot = snapshot,
    .restore = restore,
    .stop = stop,
};

DVM_PLUGIN("versions", VERSION, DVM_JSON, functions)
