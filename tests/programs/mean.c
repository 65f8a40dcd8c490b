/* A plug-in whose work is done in Fortran: {"value":X} gives {"mean":M}. Only what crosses the boundary is in C. */
#include <dvm_plugin.h>

typedef struct mean {
    int64_t count;
    double value;
} mean_t;

double mean_take(mean_t *state, double value); /* mean.f90 */

static int start(const char *config, size_t size, const dvm_place_t *place, const dvm_host_t *host, void **instance,
                 const dvm_out_t *out) {
    (void)config, (void)size, (void)place, (void)host;
    *instance = calloc(1, sizeof(mean_t));
    return *instance == NULL ? dvm_fail(out, "out of memory") : DVM_DONE;
}

static int apply(void *instance, const char *command, size_t size, const dvm_meta_t *meta, const dvm_out_t *out) {
    double value;
    (void)meta;
    if (dvm_get_double(command, size, "value", &value) <= 0)
        return dvm_fail(out, "a command is {\"value\":NUMBER}");
    dvm_object_t reply = dvm_begin(out);
    dvm_put_double(&reply, "mean", mean_take(instance, value));
    return dvm_end(&reply);
}

static int snapshot(void *instance, const dvm_out_t *out) {
    dvm_write(out, instance, sizeof(mean_t));
    return DVM_DONE;
}

static int restore(void *instance, const void *state, size_t size, const dvm_out_t *out) {
    if (size != sizeof(mean_t))
        return dvm_fail(out, "this is no mean");
    memcpy(instance, state, size);
    return DVM_DONE;
}

static const dvm_functions_t mean_functions = {
    .start = start,
    .apply = apply,
    .snapshot = snapshot,
    .restore = restore,
    .stop = free,
};

DVM_PLUGIN("mean", "0.1.0", DVM_JSON, mean_functions)
