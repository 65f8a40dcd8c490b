/* Plug-ins that a host must refuse, or cope with; which one is said when it is compiled. */
#include <dvm_plugin.h>

static int start(const char *config, size_t size, const dvm_place_t *place, const dvm_host_t *host, void **instance,
                 const dvm_out_t *out) {
    (void)config, (void)size, (void)place, (void)host, (void)instance, (void)out;
#ifdef SILENT
    return 7;
#else
    return DVM_DONE;
#endif
}

__attribute__((unused)) static int apply(void *instance, const char *command, size_t size, const dvm_meta_t *meta, const dvm_out_t *out) {
    char how[16] = "";
    (void)instance, (void)meta, (void)out;
    if (dvm_get_string(command, size, "fail", how, sizeof how) > 0) {
        if (strcmp(how, "segv") == 0)
            *(volatile int *)16 = 0;
        if (strcmp(how, "exit") == 0)
            exit(3);
    }
    return DVM_DONE;
}

__attribute__((unused)) static int snapshot(void *instance, const dvm_out_t *out) {
    (void)instance, (void)out;
    return DVM_DONE;
}

#ifndef SIZE
#define SIZE sizeof(dvm_plugin_v1_t)
#endif
#ifndef ABI
#define ABI DVM_PLUGIN_ABI
#endif
#ifndef FUNCTIONS_SIZE
#define FUNCTIONS_SIZE sizeof(dvm_functions_t)
#endif
#ifndef FLAGS
#define FLAGS DVM_FLAG_STATELESS
#endif

static const dvm_functions_t functions = {
    .start = start,
#ifndef NO_APPLY
    .apply = apply,
#endif
#ifdef HALF
    .snapshot = snapshot,
#endif
};
DVM_PLUGIN_NOTE_("odd", "0.1.0", DVM_JSON, "")
const dvm_plugin_v1_t dvm_plugin_v1 = {SIZE, ABI, FUNCTIONS_SIZE, FLAGS, &functions, NULL};
