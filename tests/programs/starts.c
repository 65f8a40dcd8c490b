/* Tells how often its image has started an instance: what is static outlives an instance where the image does. */
#include <dvm_plugin.h>

static int64_t starts;

static int start(const char *config, size_t size, const dvm_place_t *place, const dvm_host_t *host, void **instance,
                 const dvm_out_t *out) {
    (void)config, (void)size, (void)place, (void)host, (void)instance, (void)out;
    starts++;
    return DVM_DONE;
}

static int apply(void *instance, const char *command, size_t size, const dvm_meta_t *meta, const dvm_out_t *out) {
    dvm_object_t reply = dvm_begin(out);
    (void)instance, (void)command, (void)size, (void)meta;
    dvm_put_int(&reply, "starts", starts);
    return dvm_end(&reply);
}

static const dvm_functions_t functions = {.start = start, .apply = apply};
DVM_PLUGIN_STATELESS("starts", "0.1.0", DVM_JSON, functions)
