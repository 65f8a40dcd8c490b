/* A counter that every member holds, in C.
 *
 *     cc -shared -fPIC -o libcounter.so counter.c
 *     dvm plugin load ./libcounter.so -c start=10 -c step=2
 *     dvm call counter '{"add":3}'      {"value":16}
 */
#include <dvm_plugin.h>

typedef struct counter {
    int64_t value, step;
} counter_t;

/* Reads the configuration over what is there. */
static int read_config(const char *config, size_t size, counter_t *counter, const dvm_out_t *out) {
    dvm_field_t field;
    for (size_t at = 0; dvm_next_field(config, size, &at, &field) > 0;)
        if (!dvm_is(&field, "start") && !dvm_is(&field, "step"))
            return dvm_fail(out, "unknown field `%.*s`, expected `start` or `step`", (int)field.key_size, field.key);
    if (dvm_get_int(config, size, "start", &counter->value) < 0)
        return dvm_fail(out, "`start` is an integer");
    if (dvm_get_int(config, size, "step", &counter->step) < 0)
        return dvm_fail(out, "`step` is an integer");
    return DVM_DONE;
}

static int validate(const char *config, size_t size, const dvm_place_t *place, const dvm_host_t *host,
                    const dvm_out_t *out) {
    counter_t counter;
    (void)place, (void)host;
    return read_config(config, size, &counter, out);
}

static int start(const char *config, size_t size, const dvm_place_t *place, const dvm_host_t *host, void **instance,
                 const dvm_out_t *out) {
    counter_t *counter = malloc(sizeof *counter);
    if (counter == NULL)
        return dvm_fail(out, "out of memory");
    *counter = (counter_t){.value = 0, .step = 1};
    if (read_config(config, size, counter, out) != DVM_DONE) {
        free(counter);
        return DVM_ERROR;
    }
    dvm_log(host, DVM_LOG_INFO, "a counter on %s, one of %u", place->member, (unsigned)place->size);
    *instance = counter;
    return DVM_DONE;
}

static int tell(const counter_t *counter, const dvm_out_t *out) {
    dvm_object_t reply = dvm_begin(out);
    dvm_put_int(&reply, "value", counter->value);
    return dvm_end(&reply);
}

static int query(void *instance, const char *command, size_t size, const dvm_out_t *out) {
    int get = 0;
    if (dvm_get_bool(command, size, "get", &get) < 0 || !get)
        return dvm_fail(out, "a query changes nothing; use {\"get\":true}");
    return tell(instance, out);
}

static int apply(void *instance, const char *command, size_t size, const dvm_meta_t *meta, const dvm_out_t *out) {
    counter_t *counter = instance;
    int64_t steps, more, sum;
    int get = 0;
    (void)meta;
    if (dvm_get_bool(command, size, "get", &get) > 0 && get)
        return tell(counter, out);
    if (dvm_get_int(command, size, "add", &steps) <= 0)
        return dvm_fail(out, "a command is one of {\"add\":N} and {\"get\":true}");
    if (__builtin_mul_overflow(steps, counter->step, &more) || __builtin_add_overflow(counter->value, more, &sum))
        return dvm_fail(out, "the counter would overflow");
    counter->value = sum;
    return tell(counter, out);
}

static int configure(void *instance, const char *config, size_t size, const dvm_out_t *out) {
    counter_t *counter = instance, changed = {.value = 0, .step = 1};
    if (read_config(config, size, &changed, out) != DVM_DONE)
        return DVM_ERROR;
    counter->step = changed.step; /* `start` was for the first value */
    return DVM_DONE;
}

static int snapshot(void *instance, const dvm_out_t *out) {
    return tell(instance, out);
}

static int restore(void *instance, const void *state, size_t size, const dvm_out_t *out) {
    counter_t *counter = instance;
    if (dvm_get_int(state, size, "value", &counter->value) <= 0)
        return dvm_fail(out, "this is no counter's state");
    return DVM_DONE;
}

static void stop(void *instance) {
    free(instance);
}

static const dvm_functions_t counter_functions = {
    .validate = validate,
    .start = start,
    .apply = apply,
    .query = query,
    .configure = configure,
    .snapshot = snapshot,
    .restore = restore,
    .stop = stop,
};

DVM_PLUGIN("counter", "0.1.0", DVM_JSON, counter_functions)
