/* Asks its host for each service, and puts the answers into keys that begin with c/. */
#include <dvm_plugin.h>

typedef struct services {
    const dvm_host_t *host;
    char member[64];
    char early[256];
    int primary, begun;
    int64_t applied;
} services_t;

/* Puts what was answered into a key; a text of an error as a string. */
static void put(services_t *s, const char *name, int done, dvm_text_t *answer) {
    dvm_text_t value = DVM_TEXT, key = DVM_TEXT;
    dvm_out_t to = dvm_text_out(&value), name_to = dvm_text_out(&key);
    dvm_write(&name_to, "c/", 2);
    dvm_write(&name_to, name, strlen(name));
    if (done == DVM_DONE)
        dvm_write(&to, answer->at, answer->size);
    else
        dvm_json_text_(&to, answer->at);
    dvm_text_t told = DVM_TEXT;
    if (dvm_host_put(s->host, key.at, value.at, -1, &told) != DVM_DONE)
        dvm_log(s->host, DVM_LOG_ERROR, "%s: %s", name, told.at);
    dvm_text_free(&told);
    dvm_text_free(&value);
    dvm_text_free(&key);
}

static int start(const char *config, size_t size, const dvm_place_t *place, const dvm_host_t *host, void **instance,
                 const dvm_out_t *out) {
    services_t *s = calloc(1, sizeof *s);
    dvm_text_t answer = DVM_TEXT;
    (void)config, (void)size;
    if (s == NULL)
        return dvm_fail(out, "out of memory");
    s->host = host;
    snprintf(s->member, sizeof s->member, "%s", place->member);
    if (dvm_host_broadcast(host, "1", &answer) == DVM_DONE)
        return dvm_fail(out, "it was not too early");
    snprintf(s->early, sizeof s->early, "%s", answer.at);
    if (dvm_host_timer(host, "begin", 0, 0, &answer) != DVM_DONE)
        return dvm_fail(out, "no timer: %s", answer.at);
    dvm_text_free(&answer);
    *instance = s;
    return DVM_DONE;
}

static int apply(void *instance, const char *command, size_t size, const dvm_meta_t *meta, const dvm_out_t *out) {
    services_t *s = instance;
    (void)meta;
    dvm_get_int(command, size, "set", &s->applied);
    dvm_object_t reply = dvm_begin(out);
    return dvm_end(&reply);
}

static void ask_all(services_t *s) {
    static const char *const program[] = {"sh", "-c", "echo it runs; exit 5", NULL};
    dvm_text_t answer = DVM_TEXT;
    dvm_text_t early = {s->early, strlen(s->early), sizeof s->early, 0};
    put(s, "early", DVM_ERROR, &early);
    put(s, "undone", dvm_host_undone(s->host, &answer), &answer);
    put(s, "call", dvm_host_call(s->host, "counter", "{\"add\":3}", 2000, &answer), &answer);
    put(s, "send", dvm_host_send(s->host, "k1", "{\"hello\":true}", &answer), &answer);
    put(s, "refused", dvm_host_send(s->host, "nobody", "1", &answer), &answer);
    put(s, "absent", dvm_host_get(s->host, "w/none", &answer), &answer);
    put(s, "watch", dvm_host_watch(s->host, "w/", 1, &answer), &answer);
    put(s, "put", dvm_host_put(s->host, "w/x", "[1]", 0, &answer), &answer);
    put(s, "delete", dvm_host_delete(s->host, "w/x", &answer), &answer);
    put(s, "timer", dvm_host_timer(s->host, "once", 1, 0, &answer), &answer);
    put(s, "spawn", dvm_host_spawn(s->host, "k1", "p", program, &answer), &answer);
    put(s, "kill", dvm_host_kill(s->host, "k1", "nothing", &answer), &answer);
    put(s, "done", dvm_host_done(s->host, 1, &answer), &answer);
    put(s, "broadcast", dvm_host_broadcast(s->host, "{\"set\":42}", &answer), &answer);
    dvm_text_free(&answer);
}

static void on_event(void *instance, const dvm_told_t *event) {
    services_t *s = instance;
    dvm_field_t field;
    char name[32] = "";
    dvm_text_t told = DVM_TEXT;
    dvm_out_t to = dvm_text_out(&told);
    dvm_get_string(event->json, event->json_size, "name", name, sizeof name);
    if (strcmp(event->kind, "timer") == 0 && strcmp(name, "begin") == 0 && s->primary && !s->begun) {
        s->begun = 1;
        ask_all(s);
    } else if (strcmp(event->kind, "timer") == 0 && strcmp(name, "once") == 0) {
        char number[24];
        if (s->applied == 0) { /* what was broadcast comes behind this event, or has come */
            dvm_host_timer(s->host, "once", 10, 0, NULL);
            return;
        }
        snprintf(number, sizeof number, "%" PRId64, s->applied);
        dvm_write(&to, number, strlen(number));
        put(s, "applied", DVM_DONE, &told);
    } else if (strcmp(event->kind, "message") == 0) {
        dvm_write(&to, event->json, event->json_size);
        put(s, "message", DVM_DONE, &told);
    } else if (strcmp(event->kind, "key-changed") == 0 && dvm_get(event->json, event->json_size, "key", &field) > 0) {
        dvm_write(&to, field.value, field.value_size);
        put(s, "changed", DVM_DONE, &told);
    } else if (strcmp(event->kind, "process-output") == 0 && dvm_get(event->json, event->json_size, "text", &field) > 0) {
        dvm_write(&to, field.value, field.value_size);
        put(s, "output", DVM_DONE, &told);
    } else if (strcmp(event->kind, "process-exit") == 0 &&
               dvm_get(event->json, event->json_size, "exit_code", &field) > 0) {
        dvm_write(&to, field.value, field.value_size);
        put(s, "exit", DVM_DONE, &told);
    }
    dvm_text_free(&told);
}

static void on_role(void *instance, int role, uint64_t fence) {
    services_t *s = instance;
    (void)fence;
    s->primary = role == DVM_PRIMARY;
    if (s->primary)
        dvm_host_timer(s->host, "begin", 0, 0, NULL);
}

static void stop(void *instance) {
    free(instance);
}

static const dvm_functions_t functions = {
    .start = start, .apply = apply, .on_event = on_event, .on_role = on_role, .stop = stop};

DVM_PLUGIN_STATELESS("inc", "0.1.0", DVM_JSON, functions)
