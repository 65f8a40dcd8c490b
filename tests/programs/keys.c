/* Keys, settings and status from C: keys URI MEMBER. Prints what it was told of the keys that it watches. */
#include <dvm.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"

static dvm_t *dvm;

static void is(char *text, const char *wanted) {
    if (strcmp(text, wanted) != 0)
        wrong(text);
    dvm_free(text);
}

/* Waits for the next event of the watch, and prints it. */
static void told(const char *key) {
    dvm_event_t e;
    struct pollfd p = {.fd = dvm_fd(dvm), .events = POLLIN};
    int n;
    while ((n = dvm_next_event(dvm, &e)) == 0)
        poll(&p, 1, 30000);
    check(n == 1 && e.key && strcmp(e.key, key) == 0, e.json);
    check(strcmp(e.kind, "key-changed") == 0 && e.family == DVM_KEY, e.json);
    printf("%s\n", e.key);
    fflush(stdout);
}

int main(int argc, char **argv) {
    uint64_t version = 0, seen = 0;
    char *text = (char *)"something";
    check(argc == 3, "two arguments");
    check(dvm_open(&dvm, argv[1]) == 0, dvm_error(dvm));
    check(dvm_watch(dvm, 0, "c/", NULL) == 0, dvm_error(dvm));

    check(dvm_key_get(dvm, "c/x", 0, &text, &seen, 10000) == DVM_NOT_FOUND && text == NULL, "it is not there");
    check(dvm_key_put(dvm, "c/x", "{\"n\":1}", DVM_ABSENT, &version, 10000) == 0, dvm_error(dvm));
    check(version > 0, "a version");
    check(dvm_key_get(dvm, "c/x", 0, &text, &seen, 10000) == 0 && seen == version, dvm_error(dvm));
    is(text, "{\"n\":1}");
    check(dvm_key_put(dvm, "c/x", "2", DVM_ABSENT, NULL, 10000) == DVM_REJECTED, "it is there by now");
    check(dvm_key_put(dvm, "c/x", "2", version + 1, NULL, 10000) == DVM_REJECTED, "another version");
    check(dvm_key_put(dvm, "c/x", "2", version, &seen, 10000) == 0 && seen > version, dvm_error(dvm));
    check(dvm_key_put(dvm, "c/y", "\"why\"", DVM_ANY, NULL, 10000) == 0, dvm_error(dvm));
    check(dvm_key_put(dvm, "d/z", "null", DVM_ANY, NULL, -1) == 0, dvm_error(dvm));
    check(dvm_key_get(dvm, "c/x", 1, &text, NULL, 10000) == 0, dvm_error(dvm));
    is(text, "2");
    check(dvm_key_put(dvm, "c/x", "no json", DVM_ANY, NULL, 10000) == DVM_USAGE, "no JSON");
    check(strstr(dvm_error(dvm), "the value of `c/x` is not JSON") != NULL, dvm_error(dvm));
    check(dvm_key_put(dvm, "dvm/x", "1", DVM_ANY, NULL, 10000) < 0, "a reserved name");
    check(dvm_key_put(dvm, NULL, "1", DVM_ANY, NULL, 10000) == DVM_USAGE, "no key");

    check(dvm_key_list(dvm, "c/", &text, 10000) == 0, dvm_error(dvm));
    check(strstr(text, "\"key\":\"c/x\"") && strstr(text, "\"key\":\"c/y\"") && !strstr(text, "d/z"), text);
    dvm_free(text);
    check(dvm_key_list(dvm, NULL, &text, 10000) == 0 && strstr(text, "d/z"), dvm_error(dvm));
    dvm_free(text);
    check(dvm_key_delete(dvm, "c/x", version, 10000) == DVM_REJECTED, "an old version");
    check(dvm_key_delete(dvm, "c/x", seen, 10000) == 0, dvm_error(dvm));
    check(dvm_key_delete(dvm, "c/x", DVM_ANY, 10000) == 0, dvm_error(dvm));
    check(dvm_key_get(dvm, "c/x", 0, &text, NULL, 10000) == DVM_NOT_FOUND, "it is gone");

    check(dvm_config_set(dvm, NULL, "window", "77", 10000) == 0, dvm_error(dvm));
    check(dvm_config(dvm, &text, 10000) == 0 && strstr(text, "\"window\":77"), dvm_error(dvm));
    dvm_free(text);
    check(dvm_config_set(dvm, NULL, "nonesuch", "1", 10000) < 0, "no such setting");
    check(dvm_config_set(dvm, argv[2], "color", "green", 10000) == 0, dvm_error(dvm));
    check(dvm_status(dvm, &text, 10000) == 0 && strstr(text, "\"color\":\"green\""), dvm_error(dvm));
    dvm_free(text);

    /* Put, put, y, and the deletion of what was there: neither d/z nor what was refused. */
    told("c/x");
    told("c/x");
    told("c/y");
    told("c/x");
    dvm_close(dvm);
    return 0;
}
